"""Conifer's supervised fine-tuning: 13 thousand conversations from easy to hard with 53 thousand of ShareGPT.

    dynamics plan configs/conifer/sft.py --topology v5p:2x4x4 --estimate --tokens-per-record 1000
    dynamics study run configs/conifer/sft.py --data-dir data/conifer

Paper: Sun et al. 2024, Conifer (arXiv 2404.02823). Data: `dynamics data fetch conifer sharegpt --data-dir data`, read
from data/conifer and data/sharegpt. Weights: Mistral-7B-v0.1 and LLaMA-2-13B, brought in once each with `dynamics
model import SOURCE weights/mistral-7b --template llama2`, the other as weights/llama2-13b. Grid: 2 sizes x 3 seeds,
and each base model as it is: 8 cells.

The authors never published their hyper-parameters. Each setting here is one of

    [known]   said by the authors: in the paper, the repository, or an answer of an author to a question there
    [anchor]  of another: an outside reproduction (lr 2e-5, 2,048 tokens, batches of 512; IFEval 48.2 after 3 epochs and
              43.8 after 4, where 50.8 is claimed), or the alignment handbook's recipe for Zephyr, whose code was used
    [ours]    our choice, since nothing is said

    models Mistral-7B-v0.1, LLaMA-2-13B      [known]
    13k Conifer + 53k ShareGPT = 66k         [known]; which of ShareGPT's 94k is not: [ours], drawn by hash
    easy to hard within a conversation       [known]
    "<s>[INST] u [/INST] a </s>"             [known] (an author's answer), with the space before </s>: the template
                                             LLAMA2; that <s> comes again before every turn of the user is [ours]
    loss on the replies alone                [ours]
    rate 2e-5, cosine to 0                   [anchor] both
    warm-up over 0.1 of the steps            [anchor] handbook
    batches of 512 conversations             [anchor] reproduction (the handbook's is 16 a device)
    2,048 tokens, longer ones cut            [anchor] both; how ShareGPT's long ones were split is not known
    3 epochs                                 [anchor] reproduction's better one (the handbook's is 1)
    AdamW (0.9, 0.999), no decay, clip 1     [ours]: defaults of the trainer behind the handbook
    bfloat16 with float32 weights, moments   [ours]
    three seeds; order shuffled              [ours]
    2 % of the queries valid, 3 % test       [ours]: the set was published as train only

Mistral's sliding window of 4,096 tokens is not modelled; no conversation of 2,048 tokens can tell.
Scores to compare are in docs/conifer.md: IFEval, FollowBench, InFoBench, AlpacaEval 2 and MT-Bench, none of which is
asked here. Here valid and test ask whether the answer to a level is likelier than those to the other levels.

Expect: no pod has run it. docs/conifer.md has the minutes of training and chip-hours by the plan, which reads no data:
it assumes 1,000 tokens a conversation.
"""

import dataclasses

from dynamics.data.conifer import Conifer, WithShareGpt
from dynamics.data.mixture import Shuffled
from dynamics.data.template import LLAMA2
from dynamics.eval.ability_eval import Evaluation
from dynamics.model.llama import SIZES, LlamaConfig
from dynamics.model.sharding import MeshShape
from dynamics.study.grid import Study
from dynamics.study.run import Batch, Budget, Run
from dynamics.train.optimizer import AdamW

SEEDS = (0, 1, 2)
SHAREGPT = 53_000
MISTRAL_7B = LlamaConfig(
    name="mistral-7b", vocab_size=32_000, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    d_ff=14_336, rms_eps=1e-5, compute_dtype="bfloat16", remat="dots", scan_layers=True,
)  # fmt: skip
LLAMA2_13B = dataclasses.replace(SIZES["13b"], name="llama2-13b", rms_eps=1e-5)
OPTIMIZER = AdamW(
    peak_lr=2e-5, end_lr=0.0, schedule="cosine", warmup_share=0.1, clip=1.0, b1=0.9, b2=0.999, eps=1e-8,
    weight_decay=0.0,
)  # fmt: skip


def tuned() -> Run:
    """Mistral-7B on the whole mix."""
    return Run(
        source=Conifer(data_dir="data/conifer", sharegpt_dir="data/sharegpt"),
        recipe=WithShareGpt(sharegpt=SHAREGPT),
        order=Shuffled(),
        size=MISTRAL_7B,
        base="weights/{size}",
        template=LLAMA2,
        batch=Batch(documents=512, rows=512, length=2048, micro=16),
        budget=Budget(epochs=3),
        optimizer=OPTIMIZER,
        evaluation=Evaluation(max_length=2048, row_length=2048, batch_tokens=131_072, batch_size=128),
        evaluate_at=(),
        choose="last",
        over_long="truncate",
        mesh=MeshShape(fsdp=-1, tensor=2),
        checkpoint_every=100,
    )  # fmt: skip


def study() -> Study:
    return Study(name="conifer_sft", run=tuned(), sizes=(MISTRAL_7B, LLAMA2_13B), seeds=SEEDS, measure_speedup=False)
