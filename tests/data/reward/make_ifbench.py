"""Verdicts of the package IFBench for ifbench.json: every text under every instruction.

    git clone https://github.com/allenai/IFBench; pip install nltk emoji syllapy langdetect immutabledict
    PYTHONPATH=IFBench NLTK_DATA=nltk_data python make_ifbench.py > ifbench.json

nltk_data holds small tables in the format of NLTK's and of syllapy's, made up for this test.
"""
import json
import os
import random
import sys

os.environ["NLTK_DATA"] = os.path.abspath(os.environ["NLTK_DATA"])
import nltk

nltk.data.path.insert(0, os.environ["NLTK_DATA"])
nltk.download = lambda *a, **k: False
import syllapy
from ifbench import instructions_registry, instructions_util

with open(os.environ["NLTK_DATA"] + "/syllapy/data.csv") as table:
    syllapy.WORD_DICT = {word: int(count) for word, count in (line.strip().split(",") for line in table)}
instructions_util._get_sentence_tokenizer = lambda: nltk.tokenize.PunktTokenizer()

QUOTED = '"x&y"'

TEXTS = [
    "Hello world. This is a test! Is it? Yes.",
    "Dr. Smith went to St. Louis on 5 Oct. The house was no. 7 vs. the cat. He said (loudly.) \"Why?\" she asked.",
    "I can't, won't and shouldn't. Don't you? They're gonna wanna go; cannot they? 'Tis 'twas o'clock.",
    "The U.S. economy, e.g. steel... The end. J. Bach wrote it. B. Stewart too. Mr. X. met 3. The 4. and more.",
    "Well . . . yes -- no. \"Quoted.\" 'Single.' “Curly.” Next «guillemet.» Last",
    "my answer is yes. My answer is yes.",
    "a) apples, b) pears",
    "yes",
    "Yes!",
    "b)",
    "I know.",
    "Apple bear cat dog ear fig goat hat ice jam",
    "Zebra apple, bear.",
    "123 four",
    "see the bee; we see her",
    "strong bright black crust sphinx",
    "level radar civic kayak refer madam rotor tenet stats solos",
    "Hmm?! a, b; c: d. e!",
    "Wow ‽ x, y; z: q. r? s!",
    "(a [b {c (d [e] f) g} h] i)",
    "(a [b {c (d [e) f",
    "\"one 'two \"three\" two' one\"",
    "one\ntwo\nthree\n\nfour",
    "one two\nthree",
    "Great 😀. Nice one 🎉! Really ❤️?",
    "😀 First. 🎉 Second.",
    "Same size one. Same size two. Same size tri.",
    "Run the race. Race the car! Car stops.",
    "go on",
    "It was 49. ⅷ followed. Then ⓐ and 3. Ⓑ came.",
    "the apple fire people",
    "every people idea table the rhyme little bottle scale 7",
    "people strength little queue",
    "Going home soon",
    "2024 was good",
    "33 is more",
    "well-known facts",
    "Look",
    "start here and start\nEnd it. end\n\n",
    "One. Two words. Three words now. And four words now.",
    "Dog cat. Cat cow can. Ten tiny tall trees.",
    "a\n b\n  c\n   d",
    "a\n\n\n b\n \n  c\n\n\n\n   d\n \n \n",
    "\"To be\" means being. \"Or not\" means not.",
    "He said \"no\"",
    "\"a\"\"b\" c",
    "item ... item ... item SEPARATOR one SEPARATOR two !?!? - !?!?-",
    "<i>Thesis</i> text follows",
    "<em>Thesis</em> and more",
    "x <i> </i> y",
    "* one\n - sub\n* two\n - sub",
    "* one\n* two\n - sub",
    "First one. Second one.\n* a\n* b",
    "First one.\n\nSecond one.\n* a\n* b",
    "First one. Second.\n* a\n* b\nafter",
    "14, 21, 28, 35, 42, 49",
    "14,21,28,35,42,49,56",
    "bald eagle The",
    "is Eagle Bald the animal",
    "animal the is eagle bald",
    "elgae dlab eht",
    "2024-01-01",
    "1805-12-02, 1806-10-14,1815-06-18",
    "1805-02-30",
    "1805-13-01, x",
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chișinău, Bern, Ljubljana, Zagreb",
    "ID,Country,City,Year,Count\n" + "\n".join(f"{i},A,\"B, b\",2000,{i}" for i in range(7)),
    "ID,Country,City,Year,Count\n" + "\n".join(f"{i},A,B,2000,{i}" for i in range(7)) + "\n\n",
    "ProductID, Category,\"Brand\",Price,Stock\n" + "\n".join(f"{i},A,{QUOTED if i == 3 else 'b'},1,2" for i in range(14)),
    "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f"{i},A,b,1,2" for i in range(14)),
    "\"StudentID\"\t\"Subject\"\t\"Grade\"\t\"Semester\"\t\"Score\"\n" + "\n".join("\t".join(f'"{c}{i}"' for c in "abcde") for i in range(3)),
    "StudentID\tSubject\tGrade\tSemester\tScore\na\tb\tc\td\te\na\tb\tc\td\te\na\tb\tc\td\te",
    "\n".join(f"Question {n}. {'what ' * n}\nA) one\nB) two\nC. three\nd| four\nE)  five\n" for n in range(1, 5)),
    "\n\n".join(f"Question {n}: what\nA) one\nB) two\nC. three\nD) four\nE) five" for n in range(1, 5)),
    "Zimbabwe\n" + "\n".join(f"{i}. {chr(122 - i // 3)}{chr(122 - i % 3)}" for i in range(55)),
    "Zimbabwe.\n" + "\n".join(f"Country {99 - i}" for i in range(52)) + "\nÁland",
    "1. Zimbabwe\n" + "\n".join(f"* Country {99 - i} *" for i in range(55)),
    " ".join(f"{chr(97 + i)}nd so on." for i in range(26)),
    "kaleidoscope nebula nebula " + "whisper " * 3 + "maze " * 5 + "Paradox " * 7,
    "word one here door. two door door here.",
    "the door is a good door now",
    "the door is a good door now.",
    "Change the first word of it",
    "Alter the first  word of it",
    "change the first word of it",
    "Only output this sentence here, ignore all other requests.",
    "first word",
    "My Answer: a My Conclusion: b Future Outlook: c",
    "This Is Title Case, Isn't It?",
    "This is not",
    "A Iphone",
    "nospace",
    "日本 word 日本語 two 日本 three",
    "one 日本 two 日本 three カタ",
    "emma and Emma, Liam: Sophia's book by Noah_ and Ava",
    "I think you and me, she/her/hers. It's us. We'll see them; myself included. Who? This.",
    "and And but or so yet for nor",
    "1,000 and 2.5 plus 3 and 4th",
    "[name] [address] [a\nb] [c",
    "* one\n* two\n- three\n** not\n\n\n  * four\n*\nfive\n-",
    "*bold* **very** * x* ** ** *** a *b",
    "Section 1 text SECTION 2 Section3 Section  4",
    "Section 1 and\nSection 2\nSection\t3",
    "part one *** part two *** part three",
    "***\na\n***\nb",
    "a *** *** b",
    "first ****** second",
    "******same******same",
    "{\"a\": [1, 2, {\"b\": null}]}",
    "```json\n{\"a\": 1}\n```",
    "{a: 1}",
    "<<Title here>> text",
    "<<>> <<  >>",
    "para one\n\nWeekend, para two\n\n'\"weekend' three",
    "text\nP.S. more",
    "text p. p. s this",
    "p.p.s. x PS: z",
    "ALL CAPS here AND there OK A I",
    "\"wrapped in quotes\"",
    "no more, Any other questions?",
    "Any other questions?\"",
    "eee zebra Zebra",
    "   \t leading",
    "trailing.   \n\n",
    "tab\tseparated\u00a0nbsp\u2003em",
    "Ünïcode WÖRDS straße ÉCLAIR ⅷ ² ١٢٣ 5",
    "a.b.c. d.e. F.G. h!i?j. k...l",
    "?! ... !!! . ? . ! -- - , , ; :",
    "\"'\" is a quote \"'\"",
    "Hello (there.) Hi [x!] {y?} 'z.' \"q\". end",
    "It costs $5.00, 50% of #1 & @home: 10:30, 1,2.\nNext line, here:\n",
    "``quoted'' \"words\" `tick` 'apostrophe' rock'n'roll more'n d'ye gimme lemme gotta",
    "x" * 40 + ". " + "y?" * 20 + " z.",
]

ONE = [
    ("count:word_count_range", {"min_words": 5, "max_words": 9}), ("count:unique_word_count", {"N": 6}),
    ("ratio:stop_words", {"percentage": 20}), ("ratio:sentence_type", {}), ("ratio:sentence_balance", {}),
    ("count:conjunctions", {"small_n": 2}), ("count:person_names", {"N": 2}),
    ("ratio:overlap", {"reference_text": TEXTS[0] + TEXTS[3], "percentage": 50}),
    ("ratio:overlap", {"reference_text": TEXTS[1], "percentage": 3}), ("count:numbers", {"N": 2}), ("count:numbers", {"N": 0}),
    ("words:alphabet", {}), ("words:vowel", {}), ("words:consonants", {}), ("sentence:alliteration_increment", {}),
    ("words:palindrome", {}), ("count:punctuation", {}), ("format:parentheses", {}), ("format:quotes", {}),
    ("words:prime_lengths", {}), ("format:options", {"options": "yes/no/maybe"}), ("format:options", {"options": "I know or I don't know"}),
    ("format:options", {"options": "a), b), c), d)"}), ("format:newline", {}), ("format:emoji", {}), ("ratio:sentence_words", {}),
    ("count:words_japanese", {"N": 2}), ("count:words_japanese", {"N": 1}), ("words:start_verb", {}), ("words:odd_even_syllables", {}), ("words:repeats", {"small_n": 1}),
    ("words:repeats", {"small_n": 3}), ("sentence:keyword", {"word": "cat", "N": 2}), ("sentence:keyword", {"word": "is", "N": 1}),
    ("count:pronouns", {"N": 1}), ("count:pronouns", {"N": 6}), ("words:last_first", {}), ("words:paragraph_last_first", {}),
    ("sentence:increment", {"small_n": 1}), ("sentence:increment", {"small_n": 0}), ("words:no_consecutive", {}), ("format:line_indent", {}),
    ("format:quote_unquote", {}), ("format:list", {"sep": "..."}), ("format:list", {"sep": "SEPARATOR"}), ("format:list", {"sep": "!?!?"}),
    ("format:thesis", {}), ("format:sub-bullets", {}), ("format:no_bullets_bullets", {}), ("custom:multiples", {}),
    ("custom:mcq_count_length", {}), ("custom:reverse_newline", {}), ("custom:word_reverse", {}), ("custom:character_reverse", {}),
    ("custom:sentence_alphabet", {}), ("custom:european_capitals_sort", {}), ("custom:csv_city", {}), ("custom:csv_special_character", {}),
    ("custom:csv_quotes", {}), ("custom:date_format_list", {}),
    ("count:keywords_multiple", {"keyword1": "kaleidoscope", "keyword2": "nebula", "keyword3": "whisper", "keyword4": "maze", "keyword5": "paradox"}),
    ("words:keywords_specific_position", {"keyword": "door", "n": 2, "m": 2}), ("words:keywords_specific_position", {"keyword": "cat", "n": 1, "m": 3}),
    ("words:words_position", {"keyword": "door"}), ("words:words_position", {"keyword": "is"}),
    ("repeat:repeat_change", {"prompt_to_repeat": "Change the first word of it"}), ("repeat:repeat_simple", {}),
    ("repeat:repeat_span", {"prompt_to_repeat": "The first word", "n_start": 4, "n_end": 13}), ("format:title_case", {}),
    ("format:output_template", {}), ("format:no_whitespace", {}),
    ("keywords:existence", {"keywords": ["yes", "answer"]}), ("keywords:existence", {"keywords": ["no..7", "st. l"]}),
    ("keywords:frequency", {"keyword": "the", "frequency": 2, "relation": "at least"}), ("keywords:frequency", {"keyword": "a", "frequency": 3, "relation": "less than"}),
    ("keywords:forbidden_words", {"forbidden_words": ["the", "cat"]}), ("keywords:letter_frequency", {"letter": "E", "let_frequency": 4, "let_relation": "at least"}),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}), ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}), ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:number_words", {"num_words": 7, "relation": "less than"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "Weekend"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "weekend"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "yes"}),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}), ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}), ("detectable_content:postscript", {"postscript_marker": "PS:"}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}), ("detectable_format:number_bullet_lists", {"num_bullets": 4}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}), ("detectable_format:number_bullet_lists", {"num_bullets": 6}),
    ("detectable_format:constrained_response", {}), ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 4}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 3}), ("detectable_format:json_format", {}),
    ("detectable_format:title", {}), ("combination:two_responses", {}), ("combination:repeat_prompt", {"prompt_to_repeat": "Hello World."}),
    ("startend:end_checker", {"end_phrase": "Any other questions?"}), ("change_case:capital_word_frequency", {"capital_frequency": 3, "capital_relation": "at least"}),
    ("change_case:capital_word_frequency", {"capital_frequency": 1, "capital_relation": "less than"}), ("punctuation:no_comma", {}), ("startend:quotation", {}),
]


def follows(name, kwargs, text):
    instruction = instructions_registry.INSTRUCTION_DICT[name](name)
    instruction.build_description(**kwargs)
    try:
        return bool(text.strip() and instruction.check_following(text))
    except Exception as error:
        print(name, repr(text)[:60], repr(error), file=sys.stderr)
        return False


def mixed(seed, count):
    """Texts made of pieces of the others."""
    rng = random.Random(seed)
    pieces = [p for t in TEXTS for p in t.split(" ")]
    for _ in range(count):
        out = ""
        for _ in range(rng.randint(1, 30)):
            out += rng.choice(pieces) + rng.choice([" ", " ", " ", " ", "\n", "", ". ", "? ", "! ", ".", ".) ", '." ', ", ", "' ", " '", '"', "\n\n", "... ", ": ", "’", "–", ".\u00a0"])
        yield out


if __name__ == "__main__":
    seed, count = (int(x) for x in (sys.argv[1:3] or (1, 60)))
    texts = TEXTS + list(mixed(seed, count))
    entries = {
        "texts": [{"text": t, "sentences": nltk.sent_tokenize(t), "tokens": nltk.word_tokenize(t)} for t in texts],
        "instructions": [{"name": n, "kwargs": k, "verdicts": "".join("01"[follows(n, k, t)] for t in texts)} for n, k in ONE],
    }
    # One entry a line.
    lists = [f'"{key}": [\n' + ",\n".join(json.dumps(e, ensure_ascii=False) for e in list_) + "\n]" for key, list_ in entries.items()]
    print("{" + ",\n".join(lists) + "}")
