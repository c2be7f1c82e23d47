import pytest

from abmll.errors import UserError
from abmll.tasks.prompts import (
    PROMPTS,
    PromptTemplate,
    answer_letter,
    option_continuation,
    plain_prompt,
    question_prompt,
    user_message,
)
from abmll.tasks.task import Example

QUESTION = Example("Is it raining?", ("yes", "no", "maybe"), "no")
SHOWN = Example("Is it day?", ("yes", "no"), "yes")


def test_user_message_is_the_papers_text_to_the_letter():
    assert user_message("weather", QUESTION) == (
        "Return only the label of the correct answer for the question below.\n"
        "\n"
        "weather: Is it raining?\n"
        "Choices:\n"
        "A) yes\n"
        "B) no\n"
        "C) maybe\n"
        "Answer:\n"
    )
    assert answer_letter(QUESTION) == "B"


def test_demonstrations_stand_between_instruction_and_question_with_their_letters():
    instruction, rest = user_message("weather", QUESTION, demonstrations=[SHOWN, SHOWN]).split("\n\n", 1)
    block = "weather: Is it day?\nChoices:\nA) yes\nB) no\nAnswer:\nA\n\n"
    assert rest == 2 * block + user_message("weather", QUESTION).split("\n\n", 1)[1]
    assert "A" not in instruction


def test_plain_is_the_same_text_without_a_chat():
    assert plain_prompt("weather", QUESTION) == user_message("weather", QUESTION)
    assert PromptTemplate("paper").chat
    assert not PromptTemplate("plain").chat


def test_option_text_follows_with_its_space():
    assert question_prompt("weather", QUESTION) + option_continuation("no") == "weather: Is it raining?\nAnswer: no"
    with_shown = question_prompt("weather", QUESTION, demonstrations=[SHOWN])
    assert with_shown == "weather: Is it day?\nAnswer: yes\n\nweather: Is it raining?\nAnswer:"


@pytest.mark.parametrize(("name", "answer"), [("paper", "B"), ("plain", "B"), ("question", " no"), ("bare", "no")])
def test_templates_answer_in_their_own_form(name, answer):
    assert PromptTemplate(name).answer(QUESTION) == answer
    assert PromptTemplate(name).lettered == (len(answer) == 1)


def test_bare_is_the_input_alone():
    assert PromptTemplate("bare").render("weather", QUESTION) == "Is it raining?"
    with pytest.raises(UserError, match="no demonstrations"):
        PromptTemplate("bare").render("weather", QUESTION, demonstrations=[SHOWN])


def test_more_options_than_letters_is_refused_in_lettered_prompts_only():
    many = Example("Which?", tuple(map(str, range(27))), "3")
    for name in PROMPTS:
        template = PromptTemplate(name)
        if template.lettered:
            with pytest.raises(UserError, match="27 options but there are 26 letters"):
                template.render("t", many)
        else:
            assert "Which?" in template.render("t", many)
    assert answer_letter(Example("Which?", tuple(map(str, range(26))), "25")) == "Z"


def test_unknown_prompt_is_named_with_the_nearest():
    with pytest.raises(UserError, match="'papre'; did you mean 'paper'"):
        PromptTemplate("papre")
