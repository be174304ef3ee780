"""What a model is shown: the templates of a constitution, filled in.

Every text is a plain string, also that of a conversation: its turns after the first human one keep
their "Human:" and "Assistant:" markers (`data.dialogue`). Nothing is tokenised or sampled here.
"""

from collections.abc import Sequence

from jaxrlhf.constitutional.constitution import Comparison, Constitution, Principle, draw
from jaxrlhf.data import dialogue
from jaxrlhf.data.columns import Content

# So that draws for one purpose have nothing to do with those for another.
EXAMPLES = 1


def prompt_text(prompt: Content) -> str:
    """What `{prompt}` stands for: a text as it is, a conversation without its first marker."""
    if isinstance(prompt, str) and dialogue.is_dialogue(prompt):
        prompt = dialogue.parse_prompt(prompt)
    if isinstance(prompt, str):
        return prompt
    return dialogue.render(prompt).removeprefix(dialogue.HUMAN + " ")


def as_prompt(constitution: Constitution, prompt: Content) -> Content:
    """A prompt as a row of training data has it: the text that a response follows, or turns."""
    return response_query(constitution, prompt) if isinstance(prompt, str) else prompt


def as_answer(prompt: Content, response: Content) -> Content:
    """A response as a row of training data has it: a turn, or a text with the space before it."""
    if isinstance(response, list):
        return response
    if isinstance(prompt, list):
        return [{"role": "assistant", "content": response}]
    return " " + response


def response_query(constitution: Constitution, prompt: Content) -> str:
    """Ends where the response begins."""
    return constitution.layout.respond.format(prompt=prompt_text(prompt))


def critique_query(
    constitution: Constitution,
    prompt: Content,
    response: str,
    principle: Principle,
    *,
    few_shot: int | None = None,
) -> str:
    """Ends where the critique begins. `few_shot`: how many examples stand before; None: all."""
    layout = constitution.layout
    shown = _answered(constitution, prompt, response)
    asked = shown + layout.critique.format(request=principle.critique_request)
    examples = constitution.critique_examples[:few_shot]
    shots = [
        _answered(constitution, one.prompt, one.response)
        + _written(layout.critique.format(request=one.critique_request), one.critique)
        + _written(layout.revise.format(request=one.revision_request), one.revision)
        for one in examples
    ]
    return "".join([*shots, asked])


def revision_query(
    constitution: Constitution, critique_query: str, critique: str, principle: Principle
) -> str:
    """What follows a critique query and its critique; ends where the revision begins."""
    ask = constitution.layout.revise.format(request=principle.revision_request)
    return _written(critique_query, critique) + ask


def direct_query(
    constitution: Constitution,
    prompt: Content,
    response: str,
    principle: Principle,
    *,
    few_shot: int | None = None,
) -> str:
    """Asks for a revision without a critique; ends where it begins."""
    layout = constitution.layout
    template = layout.revise if layout.direct is None else layout.direct
    asked = _answered(constitution, prompt, response)
    asked += template.format(request=principle.revision_request)
    shots = [
        _answered(constitution, one.prompt, one.response)
        + _written(template.format(request=one.revision_request), one.revision)
        for one in constitution.critique_examples[:few_shot]
    ]
    return "".join([*shots, asked])


def comparison_query(
    constitution: Constitution,
    prompt: Content,
    responses: Sequence[str],
    comparison: Comparison,
    *,
    few_shot: int | None = None,
    key: Sequence[int] = (0,),
) -> str:
    """Ends where an option is to follow. `responses` are (A) and (B).

    Every example gets a question of its own and an order of its own, drawn by `key`.
    """
    layout = constitution.layout
    shots = []
    for number, one in enumerate(constitution.comparison_examples[:few_shot]):
        turned = draw(_COIN, key=(*key, EXAMPLES, number))[0]
        pair = (one.worse, one.better) if turned else (one.better, one.worse)
        question = _question(constitution, (*key, EXAMPLES, number, 1))
        asked = _pair(layout.compare, one.prompt, pair, question)
        shots.append(asked + layout.options[turned])
    asked = _pair(layout.compare, prompt, responses, comparison)
    return "".join([*shots, asked])


def thought_query(
    constitution: Constitution,
    prompt: Content,
    responses: Sequence[str],
    comparison: Comparison,
    *,
    few_shot: int | None = None,
    key: Sequence[int] = (0,),
) -> str:
    """Ends where the reasoning about `responses`, (A) and (B), begins."""
    layout = constitution.layout
    shots = []
    for number, one in enumerate(constitution.thought_examples[:few_shot]):
        question = _question(constitution, (*key, EXAMPLES, number, 1))
        asked = _pair(layout.think, one.prompt, (one.a, one.b), question)
        option = layout.options["ab".index(one.better)]
        shots.append(_written(asked, one.reasoning) + layout.conclude + option)
    asked = _pair(layout.think, prompt, responses, comparison)
    return "".join([*shots, asked])


def conclusion_query(constitution: Constitution, thought_query: str, reasoning: str) -> str:
    """What follows a thought query and the reasoning; ends where an option is to follow."""
    return _written(thought_query, reasoning) + constitution.layout.conclude


def _answered(constitution: Constitution, prompt: Content, response: str) -> str:
    return _written(response_query(constitution, prompt), response)


def _written(query: str, text: str) -> str:
    """A query and the model's text after it."""
    return f"{query} {text}"


def _pair(template: str, prompt: Content, responses: Sequence[str], comparison: Comparison) -> str:
    a, b = responses
    return template.format(prompt=prompt_text(prompt), question=comparison.question, a=a, b=b)


def _question(constitution: Constitution, key: Sequence[int]) -> Comparison:
    return constitution.comparisons[draw(constitution.comparisons, key=key)[0]]


_COIN = tuple(Comparison(id=side, question=side) for side in ("better first", "worse first"))
