"""Benchmarks: prompts to the letter as published, what is left out is counted, and wrong files are named."""

import csv
import dataclasses
import json
from collections import Counter

import pytest

from dynamics.data.template import DOIT, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.benchmarks import DOIT_PARTS, FAMILY, AgiEval, CEval, Cmmlu
from dynamics.eval.benchmarks.cmmlu import SUBJECTS

HEADER = ("", "Question", "A", "B", "C", "D", "Answer")
CEVAL_HEADER = ("id", "question", "A", "B", "C", "D", "answer", "explanation")
SHOTS = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"


def write_csv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_lines(path, *objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")


def texts(turns):
    return [(turn.role, turn.content) for turn in turns]


def characters(turns):
    """A length of prompts that can be counted by hand."""
    return sum(len(turn.content) for turn in turns)


@pytest.fixture
def cmmlu(tmp_path):
    dev = [(i, f"例{i}" + "长" * (i % 3), "甲", "乙", "丙", "丁", "ABCDA"[i]) for i in range(5)]
    write_csv(tmp_path / "dev/agronomy.csv", HEADER, *dev)
    test = [(0, "哪个是红色", "天", "玫瑰", "叶", "沙", "B"), (1, "a, b", "1", "2", "3", "4", "D")]
    write_csv(tmp_path / "test/agronomy.csv", HEADER, *test)
    return tmp_path


@pytest.fixture
def agieval(tmp_path):
    one = {"passage": None, "question": "几月？", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": "C"}
    several = one | {"label": ["A", "C"]}
    passage = one | {"passage": "春。", "label": ["B"], "answer": None, "other": None}
    write_lines(tmp_path / "v1/gaokao-physics.jsonl", one, several, passage)
    write_lines(tmp_path / "v1/lsat-ar.jsonl", one)
    cells = {1: one, 3: several, 5: "", 7: passage | {"options": ["(A)冬 (B)夏"]}, 9: ""}
    shown = [(f"row {i}", repr(cells.get(i, "why")) if cells.get(i, "why") else "") for i in range(1, 11)]
    write_csv(tmp_path / "few_shot_prompts.csv", ("", "gaokao-physics"), *shown)
    return tmp_path / "v1"


@pytest.fixture
def ceval(tmp_path):
    dev = [(i, f"例{i}", "甲", "乙", "丙", "丁", "ABCDA"[i], "因为") for i in range(5)]
    write_csv(tmp_path / "dev/physician_dev.csv", CEVAL_HEADER, *dev)
    write_csv(tmp_path / "val/physician_val.csv", CEVAL_HEADER[:-1], (0, "问", "一", "二", "三", "四", "C"))
    return tmp_path


def doit_record(question, gold, *, shots=5):
    shown = [one for i in range(shots) for one in (("user", f"例{i}"), ("assistant", "A"))]
    turns = [*shown, ("user", question), ("assistant", gold)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "type": "ceval_teacher_qualification_fshot", "question_format": 0, "idx": 1}


# --- layouts ------------------------------------------------------------------------------------------------------


def test_cmmlu_asks_as_published(cmmlu):
    question, second = Cmmlu(data_dir=str(cmmlu)).questions()
    asked = "题目：哪个是红色\nA. 天\nB. 玫瑰\nC. 叶\nD. 沙\n答案是："
    assert texts(question.turns(0)) == [("user", SHOTS + asked)]
    shot = "题目：例0\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案是：A\n\n"
    other = "题目：例1长\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案是：B\n\n"
    assert texts(question.turns(2)) == [("user", SHOTS + shot + other + asked)]
    assert (question.task, question.id, question.options, question.gold) == (
        "agronomy", "agronomy/0", ("A", "B", "C", "D"), "B",
    )  # fmt: skip
    assert (second.id, second.gold, second.max_shots) == ("agronomy/1", "D", 5)


def test_cmmlu_leaves_out_the_longest_examples_all_of_one_length_at_once_and_then_the_header(cmmlu):
    benchmark = Cmmlu(data_dir=str(cmmlu))
    question = benchmark.questions()[0]
    whole = characters(question.turns(5))
    sizes = [characters(question.turns(k + 1)) - characters(question.turns(k)) for k in range(5)]
    assert sizes[2] == max(sizes)
    assert sizes[1] == sizes[4], "example 2 is the longest, then 1 and 4 alike"

    def shown(max_length):
        fitted = dataclasses.replace(benchmark, max_length=max_length).fitted(question, 5, characters)
        return None if fitted is None else [i for i in range(5) if f"题目：例{i}" in fitted[0].content]

    assert shown(whole) == [0, 1, 2, 3, 4]
    assert shown(whole - 1) == [0, 1, 3, 4]
    assert shown(whole - sizes[2] - 1) == [0, 3]
    assert shown(characters(question.turns(0))) == []
    bare = dataclasses.replace(benchmark, max_length=characters(question.turns(0)) - 1)
    assert texts(bare.fitted(question, 5, characters)) == [("user", question.text)]
    assert dataclasses.replace(benchmark, max_length=5).fitted(question, 5, characters) is None


def test_agieval_asks_as_published(agieval):
    first, last = AgiEval(data_dir=str(agieval)).questions()
    options = "(A)一 (B)二 (C)三 (D)四"
    asked = f"问题：几月？ 选项：{options}\n答案：从A到D, 我们应选择"
    assert texts(first.turns(0)) == [("user", asked)]
    assert texts(last.turns(0)) == [("user", "春。" + asked)]

    # The second example has two golds: it goes, and its number with it. An example may hold all options in one text.
    shown = [
        ("user", f"问题 1.    几月？\n从以下选项中选择:    {options}\n答案：从A到D, 我们应选择"),
        ("assistant", "C"),
        ("user", "问题 3.   春。 几月？\n从以下选项中选择:    (A)冬 (B)夏\n答案：从A到D, 我们应选择"),
        ("assistant", "B"),
    ]
    own = f"问题 3.   春。 几月？\n从以下选项中选择:    {options}\n答案：从A到D, 我们应选择"
    assert texts(last.turns(5)) == [*shown, ("user", own)]
    assert last.max_shots == 2
    assert [q.id for q in (first, last)] == ["gaokao-physics/1", "gaokao-physics/3"]


def test_agieval_takes_examples_while_they_fit_beside_the_question_and_48_tokens(agieval):
    benchmark = AgiEval(data_dir=str(agieval))
    question = benchmark.questions()[0]
    one, two = (sum(len(asked + answer) for asked, answer in question.examples[:k]) for k in (1, 2))
    own = len("几月？(A)一 (B)二 (C)三 (D)四")

    def shots(max_length, length_of=characters):
        fitted = dataclasses.replace(benchmark, max_length=max_length).fitted(question, 5, length_of)
        return None if fitted is None else len(fitted) // 2

    begins = 2  # the published count has a token that begins a text in each of the two
    assert shots(two + own + 48 + begins) == 2
    assert shots(two + own + 48 + begins - 1) == 1
    assert shots(one + own + 48 + begins - 1) == 0
    assert shots(20) is None
    # A template that writes much around a turn: what does not fit as it is asked goes too.
    assert shots(two + own + 48 + begins, lambda turns: characters(turns) + 60 * len(turns)) < 2


def test_ceval_is_twelve_messages_with_the_answer(ceval):
    (question,) = CEval(data_dir=str(ceval)).questions()
    turns = texts(question.turns(5))
    assert len(turns) == 11
    assert [role for role, _ in turns] == ["user", "assistant"] * 5 + ["user"]
    header = "以下是中国关于医师资格考试的单项选择题，请选出其中的正确答案。\n\n"
    assert turns[0][1] == header + "例0\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    assert [content for role, content in turns if role == "assistant"] == list("ABCDA")
    assert turns[2][1] == "例1\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    asked = "问\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
    assert turns[-1][1] == asked
    assert texts(question.turns(0)) == [("user", header + asked)]
    fitted = CEval(data_dir=str(ceval), max_length=characters(question.turns(3))).fitted(question, 5, characters)
    assert texts(fitted) == texts(question.turns(3))
    assert question.gold == "C"


def test_ceval_reads_the_records_of_doit_as_they_are(ceval):
    write_lines(ceval / "curated/test/ceval_teacher_qualification.json", doit_record("问", "B"), doit_record("题", "D"))
    benchmark = CEval(data_dir=str(ceval))
    counts = Counter(question.task for question in benchmark.questions())
    assert counts == {"physician": 1, "teacher_qualification": 2}
    record = benchmark.questions()[1]
    assert texts(record.turns(5)) == [*record_turns(), ("user", "问")]
    assert (record.gold, record.max_shots, record.id) == ("B", 5, "teacher_qualification/1")
    assert benchmark.counts()["missing_tasks"] == 1, "the third part of DoIT"


def record_turns():
    return [one for i in range(5) for one in (("user", f"例{i}"), ("assistant", "A"))]


# --- what is counted ----------------------------------------------------------------------------------------------


def test_what_is_not_asked_is_counted_and_named(agieval):
    contents = AgiEval(data_dir=str(agieval)).contents()
    assert contents.left_out == {"several_golds": {"gaokao-physics": 1}}
    assert contents.unknown == ("lsat-ar",)
    assert len(contents.missing) == 9
    assert contents.counts() == {"left_out": 1, "several_golds": 1, "missing_tasks": 9, "unknown_files": 1}
    contents = AgiEval(data_dir=str(agieval), limit=1).contents()
    assert len(contents.questions) == 1
    assert contents.counts()["beyond_limit"] == 1
    assert contents.counts()["left_out"] == 2


def test_the_fingerprint_is_of_what_is_asked(cmmlu, tmp_path):
    benchmark = Cmmlu(data_dir=str(cmmlu))
    first = benchmark.fingerprint()
    path = cmmlu / "test/agronomy.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    assert benchmark.fingerprint() == first, "line ends say nothing"
    path.write_text(path.read_text("utf-8").replace("玫瑰", "荷花"), "utf-8")
    changed = benchmark.fingerprint()
    assert changed != first
    assert dataclasses.replace(benchmark, limit=1).fingerprint() != changed
    (cmmlu / "dev/agronomy.csv").unlink()
    assert dataclasses.replace(benchmark, shots=(0,)).fingerprint() != changed, "examples are part of it"


@pytest.mark.parametrize("kind", FAMILY)
def test_members_say_their_name_and_refuse_settings_that_make_no_sense(kind):
    assert kind(data_dir="x").name == kind.__name__.lower()
    for wrong in ({"shots": ()}, {"shots": (0, 0)}, {"shots": (-1,)}, {"limit": 0}, {"letters": "first"}):
        with pytest.raises(UserError):
            kind(data_dir="x", **wrong)
    with pytest.raises(UserError, match="no folder"):
        kind(data_dir="nowhere/at/all").questions()


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([HEADER, (0, "q", "a", "b", "c", "d", "E")], r"agronomy.csv: row 1: Answer is 'E'; it must be one of A, B, C"),
        ([HEADER, (0, "q", "a", "b", "c", "A")], r"row 1 has 6 cells, the header 7"),
        ([HEADER, (0, " ", "a", "b", "c", "d", "A")], r"row 1: Question is blank"),
        ([HEADER, (0, "q", "a", "b", " ", "d", "A")], r"row 1: C is blank"),
        ([HEADER[:-1], (0, "q", "a", "b", "c", "d")], r"no column 'Answer'; it has 'index', 'Question'"),
        ([HEADER], r"has a header and no rows"),
        ([], r"is empty; its first line names the columns"),
    ],
)
def test_a_wrong_table_is_named_with_row_and_field(cmmlu, rows, message):
    write_csv(cmmlu / "test/agronomy.csv", *rows)
    with pytest.raises(UserError, match=message):
        Cmmlu(data_dir=str(cmmlu)).questions()


def test_two_questions_of_one_number_are_refused(cmmlu):
    write_csv(cmmlu / "test/agronomy.csv", HEADER, *[(3, "q", "a", "b", "c", "d", "A")] * 2)
    with pytest.raises(UserError, match=r"gives the id 'agronomy/3' to several questions"):
        Cmmlu(data_dir=str(cmmlu)).questions()


def test_a_task_that_is_not_there_is_an_error_only_when_it_is_asked_for(cmmlu):
    assert Cmmlu(data_dir=str(cmmlu)).counts()["missing_tasks"] == 66
    with pytest.raises(UserError, match=r"has no task 'virology'; it has agronomy"):
        Cmmlu(data_dir=str(cmmlu), tasks=("virology",)).questions()
    with pytest.raises(UserError, match=r"has 5 examples and shots is \(7,\); ask for fewer"):
        Cmmlu(data_dir=str(cmmlu), shots=(7,)).questions()
    with pytest.raises(UserError, match=r"has none of its files"):
        AgiEval(data_dir=str(cmmlu)).questions()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "E"}, r"physics.jsonl:1: label is 'E'; it must be one of A, B, C, D"),
        ({"label": None}, r":1: label is None; it must be a letter or a list of letters"),
        ({"question": 3}, r":1: question is 3; it must be a text"),
        ({"options": "A B"}, r":1: options is 'A B'; it must be a list"),
        ({"options": ["(A)一"], "label": "A"}, r":1: options has 1 texts; a question needs two or more"),
        ({"options": None, "label": ["A", "B"]}, r":1: options has 0 texts; a question needs two or more"),
        ({"options": ["(A)一", " "], "label": "A"}, r":1: options\[1\] is blank"),
        ({"passage": 1}, r":1: passage is 1; it must be a text or null"),
    ],
)
def test_a_wrong_object_is_named_with_line_and_field(agieval, change, message):
    good = {"passage": None, "question": "几月？", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": "C"}
    write_lines(agieval / "gaokao-physics.jsonl", good | change)
    with pytest.raises(UserError, match=message):
        AgiEval(data_dir=str(agieval)).questions()


def test_examples_that_cannot_be_read_are_named(agieval):
    write_csv(agieval.parent / "few_shot_prompts.csv", ("", "x"), *[("", "{}")] * 10)
    with pytest.raises(UserError, match=r"no column 'gaokao-physics'; it has '', 'x'"):
        AgiEval(data_dir=str(agieval)).questions()
    write_csv(agieval.parent / "few_shot_prompts.csv", ("", "gaokao-physics"), *[("", "{'a'")] * 10)
    with pytest.raises(UserError, match=r"few_shot_prompts.csv: row 1: gaokao-physics is no Python literal"):
        AgiEval(data_dir=str(agieval)).questions()
    (agieval.parent / "few_shot_prompts.csv").unlink()
    with pytest.raises(UserError, match=r"has no few_shot_prompts.csv, nor has the folder above; .*shots=\(0,\)"):
        AgiEval(data_dir=str(agieval)).questions()
    assert len(AgiEval(data_dir=str(agieval), shots=(0,)).questions()) == 2


def test_records_of_ceval_that_are_none_are_named(tmp_path):
    path = tmp_path / "ceval_physician.json"
    write_lines(path, doit_record("问", "E"))
    with pytest.raises(UserError, match=r"ceval_physician.json:1: messages\[11\].content is 'E'; it must be a letter"):
        CEval(data_dir=str(tmp_path)).questions()
    write_lines(path, doit_record("问", "A", shots=2))
    with pytest.raises(UserError, match=r"physician has 2 examples and shots is \(5,\); ask for fewer"):
        CEval(data_dir=str(tmp_path)).questions()
    write_csv(tmp_path / "physician_val.csv", CEVAL_HEADER)
    with pytest.raises(UserError, match=r"physician is twice in .*: .*ceval_physician.json and .*_val.csv; keep one"):
        CEval(data_dir=str(tmp_path)).questions()


@pytest.mark.parametrize("second", ["curated/test/ceval_physician.json", "test/ceval_physician_test.json"])
def test_two_files_of_a_subject_of_ceval_are_refused(tmp_path, second):
    write_lines(tmp_path / "ceval_physician.json", doit_record("问", "A"))
    assert len(CEval(data_dir=str(tmp_path)).questions()) == 1
    write_lines(tmp_path / second, doit_record("题", "B"))
    with pytest.raises(UserError, match=rf"physician is twice in .*ceval_physician.json and .*{second}; keep one"):
        CEval(data_dir=str(tmp_path)).questions()


def test_a_blank_option_of_ceval_is_named(ceval):
    write_csv(ceval / "val/physician_val.csv", CEVAL_HEADER[:-1], (0, "问", "一", "", "三", "四", "C"))
    with pytest.raises(UserError, match=r"physician_val.csv: row 1: B is blank"):
        CEval(data_dir=str(ceval)).questions()


def test_a_subject_that_ceval_does_not_have_is_an_error_where_it_is_misspelt(ceval):
    (ceval / "val/physician_val.csv").rename(ceval / "val/phsician_val.csv")
    (ceval / "dev/physician_dev.csv").rename(ceval / "dev/phsician_dev.csv")
    message = r"phsician_val.csv: 'phsician' is none of C-Eval's 52 subjects \(did you mean 'physician'\?\); rename"
    with pytest.raises(UserError, match=message):
        CEval(data_dir=str(ceval)).questions()
    assert [one.task for one in CEval(data_dir=str(ceval), tasks=("phsician",)).questions()] == ["phsician"]


def test_other_files_of_ceval_are_counted_and_read_only_by_name(ceval):
    write_csv(ceval / "val/juggling_val.csv", CEVAL_HEADER[:-1], (0, "问", "一", "二", "三", "四", "C"))
    contents = CEval(data_dir=str(ceval)).contents()
    assert {question.task for question in contents.questions} == {"physician"}
    assert contents.unknown == ("juggling",)
    assert contents.counts() == {"left_out": 0, "missing_tasks": 2, "unknown_files": 1}
    own = CEval(data_dir=str(ceval), tasks=("juggling",), shots=(0,)).contents()
    assert ({question.task for question in own.questions}, own.unknown) == ({"juggling"}, ())


def test_a_missing_file_of_examples_is_named(ceval, cmmlu):
    (ceval / "dev/physician_dev.csv").unlink()
    with pytest.raises(UserError, match=r"dev/physician_dev.csv, which has the worked examples, is missing; .*\(0,\)"):
        CEval(data_dir=str(ceval)).questions()
    assert len(CEval(data_dir=str(ceval), shots=(0,)).questions()) == 1
    (cmmlu / "dev/agronomy.csv").unlink()
    with pytest.raises(UserError, match=r"dev/agronomy.csv, which has the worked examples, is missing"):
        Cmmlu(data_dir=str(cmmlu)).questions()


def test_a_benchmark_of_which_everything_is_left_out_says_what(agieval):
    several = {"passage": None, "question": "几月？", "options": ["(A)一", "(B)二"], "label": ["A", "B"]}
    write_lines(agieval / "gaokao-physics.jsonl", several, several | {"question": "几日？"})
    message = r"leaves no question to ask \(left out as several_golds: 2 of gaokao-physics\)"
    with pytest.raises(UserError, match=message):
        AgiEval(data_dir=str(agieval)).contents()


# --- the real files -----------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_all_of_cmmlu_is_read(shared_data):
    contents = Cmmlu(data_dir=str(shared_data / "cmmlu")).contents()
    assert len(contents.questions) == len({question.id for question in contents.questions}) == 11_582
    assert {question.task for question in contents.questions} == set(SUBJECTS)
    assert len(SUBJECTS) == 67
    assert all(question.max_shots == 5 for question in contents.questions)  # 335 examples
    assert contents.counts() == {"left_out": 0, "missing_tasks": 0, "unknown_files": 0}
    # The prompts behind this digest were compared, text by text, with those that the published code writes.
    assert contents.fingerprint() == "0022650dc77fab20"


@pytest.mark.shared_data
def test_the_gaokao_sets_of_agieval_are_read_without_those_of_several_golds(shared_data):
    contents = AgiEval(data_dir=str(shared_data / "agieval")).contents()
    assert Counter(question.task for question in contents.questions) == {
        "gaokao-chinese": 246, "gaokao-geography": 199, "gaokao-history": 235, "gaokao-biology": 210,
        "gaokao-chemistry": 207, "gaokao-mathqa": 344, "gaokao-physics": 165,
    }  # fmt: skip
    assert contents.left_out == {"several_golds": {"gaokao-mathqa": 7, "gaokao-physics": 35}}
    assert contents.missing == ("logiqa-zh", "jec-qa-kd", "jec-qa-ca")
    assert contents.fingerprint() == "df89c355bb0cc79d"


@pytest.mark.shared_data
def test_prompts_fit_2048_tokens_of_the_published_tokenizer_as_published(shared_data):
    tokenizer = Tokenizer.load(shared_data / "doit/chinese_llama_plus_tokenizer.model")
    benchmark = AgiEval(data_dir=str(shared_data / "agieval"), tasks=("gaokao-chinese",))

    def length_of(turns):
        return len(encode(DOIT, tokenizer, turns, generate=True))

    questions = benchmark.questions()[:40]
    fitted = [benchmark.fitted(question, 5, length_of) for question in questions]
    assert all(turns is not None and length_of(turns) <= 2048 for turns in fitted)
    # Three examples of old Chinese and a question with a long passage never fit together.
    assert sum(turns != question.turns(5) for turns, question in zip(fitted, questions, strict=True)) == 40


def test_the_parts_of_doit_are_known_subjects():
    from dynamics.eval.benchmarks.ceval import SUBJECTS as CEVAL_SUBJECTS

    assert len(CEVAL_SUBJECTS) == 52
    assert set(DOIT_PARTS) < set(CEVAL_SUBJECTS)
