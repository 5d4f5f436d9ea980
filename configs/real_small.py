"""Ten abilities built from real exam questions and instruction data, at small sizes: the main job on real input.

    dynamics study run configs/real_small.py --data-dir ../shared/data

Data: a folder of public sample data (CMMLU, AGIEval-Gaokao, BELLE's eval set, Alpaca and preference demos; see
dynamics/data/sample_sets.py), with the 49,953-piece Chinese LLaMA tokenizer that lies in it. They are written once, as
ten ability files in DoIT's schema, and read by the loader that reads yours. Without --data-dir the folder is
$DYNAMICS_DATA_DIR, else ../shared/data.
Grid: 2 sizes x 3 volumes x 2 seeds, all ten abilities in every run, and the untuned base model of each size: 14 cells.
The vocabulary makes these models larger than their names say: 3.4 and 5.4 million parameters, most in the embedding.

Expect: about 15 minutes on 2 CPU cores, losses that fall with volume, and scores near chance. Models this small,
pre-trained on so little, learn the form of an answer and hardly any of its content.
"""

from dynamics.data.sample_sets import SampleSets
from dynamics.eval.ability_eval import Evaluation
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget, Run
from dynamics.train.optimizer import PRACTICE

BATCH = Batch(rows=4, length=512)


def study() -> Study:
    return Study(
        name="real_small",
        run=Run(
            source=SampleSets(),
            tokenizer="{data_dir}/doit/chinese_llama_plus_tokenizer.model",
            batch=BATCH,
            budget=Budget(epochs=4, min_updates=60),
            optimizer=PRACTICE,
            base=Base(tokens=300_000, batch=BATCH, optimizer=PRACTICE),
            evaluation=Evaluation(max_new_tokens=16, max_length=1024, row_length=256),
            evaluate_at=(1.0,),
            over_long="truncate",
        ),
        sizes=("0.2m", "0.6m"),
        volumes=(4, 16, 64),
        seeds=(0, 1),
    )
