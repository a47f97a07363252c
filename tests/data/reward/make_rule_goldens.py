"""Goldens of the rules f1, gpqa and deterministic_random, from the reference's own functions.

    python make_rule_goldens.py MILES_SOURCE     # a checkout of radixark/miles (made with 31f1ca9)

writes rules.jsonl beside this script: {"rule", "response", "label", "metadata", "tokens", "reward"} a line.
"""
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(sys.argv[1]) / f"miles/rollout/rm_hub/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


f1, gpqa = load("f1"), load("gpqa")
rows = []
for response, label in [
    ("The cat sat on the mat.", "a cat sat on a mat"), ("cat", "dog"), ("", ""), ("the", "a"), ("Yes", "yes!"),
    ("yes", "no"), ("no", "nope"), ("Yes, it is", "yes"), ("noanswer", "NoAnswer."), ("it is noanswer", "noanswer"),
    ("a b c c c", "c c d"), ("Barack Obama", "Barack H. Obama"), ("U.S.A.", "usa"), ("x\u00a0y\u2003z", "x y z"),
    ("\u00c9COLE du th\u00e9", "\u00e9cole"), ("the-cat", "thecat"), ("an_apple", "anapple"), ("ananas an", "ananas"),
    ("a\u00bfcat", "cat"), ("\u4f60\u597d a", "\u4f60\u597d"), ("caf\u00e9 a\u0301b", "cafe ab"), ("1,000 men", "1000 men"),
    ("the\tthe the end", "END"), ("word " * 50, "word"), ("a1 an2 the3", "1 2 3"), ("\x1ca\x1db", "b"),
]:
    rows.append({"rule": "f1", "response": response, "label": label, "reward": f1.f1_score(response, label)[0]})

four = {"choices": ["Red shift", "Blue shift", "No shift", "Both shifts"]}
for response, label, metadata in [
    ("The answer is B.", "B", {}), ("The answer is b", "B", {}), ("answer: C", "c", {}), ("Answer:D", " d ", {}),
    ("answered by E", "E", {}), ("the answer is", "I", {"valid_letters": list("HIJ")}), ("Option  is  A", "A", four),
    ("My choice is the first", "A", four), ("C is the correct one", "C", {}), ("C is correct", "C", {}),
    ("C is thecorrect", "C", {}), ("This correct", "H", {}), ("final option D", "D", {}), ("Final answer is: Z", "Z", {}),
    ("<think>answer is A</think> so B it is", "B", {}), ("<think>A</think>", "A", {}), ("A and then B or C", "C", {}),
    ("AB C_ D1 \u00c9E E\u00c9 F", "F", {}), ("x G_", "G", {}), ("answer is Z, so take B", "B", four),
    ("", "A", {}), ("nothing", "A", {}), ("Blue shift", "Blue shift", four), ("it is a BLUE--shift!", "B", four),
    ("no idea", "Blue shift", four), ("B", "Blue shift", four), ("A", "Blue shift", four), ("The answer is B", 1, four),
    ("The answer is A", 0, {}), ("The answer is C", 2.9, {}), ("The answer is H", 7, {}), ("The answer is A", 8, {}),
    ("The answer is B", True, {}), ("The answer is A", -0.5, {}), ("The answer is A", -1, four),
    ("The answer is D", None, {"correct_letter": " d "}), ("The answer is D", "A", {"correct_letter": "D"}),
    ("The answer is A", "A", {"correct_letter": ""}), ("It is 42 exactly", None, {"correct_answer": 42}),
    ("It is 4 2 exactly", None, {"correct_answer": "4.2"}), ("a photon", None, {"answer_text": "Photon"}),
    ("a photon", "electron", {"answer_text": "Photon", "correct_letter": "Q"}), ("Q", "x", {"valid_letters": ["q"]}),
    ("answer is X", "X", {"valid_letters": "xyz"}), ("answer is Y", 1, {"valid_letters": ["x", "y"]}),
    ("red shift", "A", {"choices": {"one": "Red shift", "two": "Blue"}}), ("B", "2", {"choices": [1, 2, 3.5]}),
    ("C", "3.5", {"choices": [1, 2, 3.5]}), ("answer (A)", "A", {}), ("answer **B**", "B", {}), ("choice\n\n:\n C", "C", {}),
    ("answer is is", "I", {"valid_letters": list("IS")}), ("answer:", "A", {}), ("optioniSd", "D", {}),
    ("The long text says the word electron here", "the electron", {}), ("electron", "Electron!", {}),
    ("A \u0391 B\u0301", "B", {}), ("E.", "E", {"choices": []}), ("K", "k", {"valid_letters": ["K"]}),
    ("answer I think", "I", {"valid_letters": list("ABI")}), ("I choose B because A is not correct", "A", {}),
]:
    reward = gpqa.compute_gpqa_reward(response, label, metadata=json.loads(json.dumps(metadata)))
    rows.append({"rule": "gpqa", "response": response, "label": label, "metadata": metadata, "reward": reward})

for tokens, response in [([1], ""), ([1, 2, 3], "abc"), ([7] * 40, "\u00e9"), ([5, 248319], "x" * 200), ([0], "0"),
                         ([9, 8], "y"), ([9, 8], "z"), (list(range(100)), "long")]:
    reward = int(hashlib.sha256((str(tokens) + response).encode()).digest()[0]) % 2
    rows.append({"rule": "deterministic_random", "response": response, "tokens": tokens, "reward": reward})

(HERE / "rules.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
