import pytest

from untaxed.measuring.instructions import (
    CHECKS,
    all_followed,
    check_instruction,
    followed,
    sentences_of,
    share_followed,
)

# id, settings, answers that follow it, answers that do not
CASES = [
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["WE are HERE now"],
        ["WE are here", "we"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["WE are", "a"],
        ["I AM"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, ["say hi. Hi!"], ["Hi! Say hi."]),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******\none ****** two"],
        ["one", "one ****** one", "one ****** ****** two", "a ****** b ****** c"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [place]"], ["[name]"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "p. s. more"],
        ["Bye", "ps more"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP. P. S more"], ["x\nP.S. more"]),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["No."]),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n[]\n```"],
        ["{a: 1}", "Sure: {}"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\nx\nSECTION 2\ny"],
        ["SECTION 1\nx", "SECTION a SECTION b"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\ntext\n - b"],
        ["* a", "* a\n* b\n* c", "**bold**\n* a"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b*"],
        ["*a*", "** **  *  *"],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\nx"], ["<Joy>", "<<>>"]),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, ["Cats and DOGS"], ["cats"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, ["rocket"], ["We Rock!"]),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War and war"],
        ["war"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "t", "let_frequency": 2, "let_relation": "less than"},
        ["one t", "none"],
        ["T t"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
        ["#a #b"],
        ["#a"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ["One.\n\n'Weekend!' it is", "a\n\n\n\nweekend, yes"],
        ["Weekend\n\nx", "a\n\nweekend\n\nb"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a", "a *** *** b", "a *** b *** c"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two!", "Dr. Who came. He left."],
        ["One. Two. Three?"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["one two three"], ["one two"]),
    ("punctuation:no_comma", {}, ["a b"], ["a, b"]),
    ("startend:end_checker", {"end_phrase": "Peace!"}, ["Well. peace!", '"Peace!"'], ["Peace! Bye"]),
    ("startend:quotation", {}, ['"all of it"'], ['"some" of it', '"']),
]
SPOKEN = [
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein ganz gewöhnlicher Satz über das Wetter."],
        ["This is an ordinary sentence about the weather."],
    ),
    (
        "language:response_language",
        {"language": "hi"},
        ["मौसम आज बहुत अच्छा है और हम बाहर जा रहे हैं।"],
        ["The weather is fine."],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS AN ORDINARY SENTENCE ABOUT THE WEATHER."],
        ["This is not.", "DAS IST EIN GANZ GEWÖHNLICHER SATZ ÜBER DAS WETTER."],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is an ordinary sentence about the weather."],
        ["This is not.", "das ist ein ganz gewöhnlicher satz über das wetter."],
    ),
]


def check(name, settings, right, wrong):
    one = check_instruction(name, settings)
    assert [followed(answer, one) for answer in right] == [True] * len(right)
    assert [followed(answer, one) for answer in [*wrong, "", "  \n"]] == [False] * (len(wrong) + 2)


@pytest.mark.parametrize(("name", "settings", "right", "wrong"), CASES)
def test_an_instruction_tells_answers_apart(name, settings, right, wrong):
    check(name, settings, right, wrong)


@pytest.mark.parametrize(("name", "settings", "right", "wrong"), SPOKEN)
def test_an_instruction_about_language(name, settings, right, wrong):
    pytest.importorskip("py3langid")
    check(name, settings, right, wrong)


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES + SPOKEN} == set(CHECKS)


def test_a_prompt_is_followed_when_all_its_instructions_are():
    both = [check_instruction("punctuation:no_comma", {}), check_instruction("startend:quotation", {})]
    assert [all_followed(answer, both) for answer in ('"a"', "a", '"a, b"')] == [1, 0, 0]
    assert [share_followed(answer, both) for answer in ('"a"', "a", "a, b")] == [1, 0.5, 0]


def test_sentences():
    text = 'Mr. Fox paid 3.50 for it. "Really?" she asked!\n\nNo full stop here\n\nThe end...'
    assert sentences_of(text) == [
        "Mr. Fox paid 3.50 for it.",
        '"Really?"',
        "she asked!",
        "No full stop here",
        "The end...",
    ]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("punctuation:no_coma", {}, "unknown instruction 'punctuation:no_coma'; did you mean 'punctuation:no_comma'"),
        ("punctuation:no_comma", {"n": 1}, r"expected the settings \[\], got \['n'\]"),
        ("startend:end_checker", {}, r"expected the settings \['end_phrase'\], got \[\]"),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "about"},
            "unknown relation 'about'; known: at least, less than",
        ),
    ],
)
def test_an_instruction_that_cannot_be_checked_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        check_instruction(name, settings)


def test_settings_that_are_null_are_not_there():
    assert check_instruction("punctuation:no_comma", {"num_words": None}) == {
        "id": "punctuation:no_comma",
        "kwargs": {},
    }
