"""Chat templates as the common families write them, in our own words, and what they must render.

Each has a golden string for one conversation (system where the family has it, two questions, two
answers), and the stretches of it that are to be learnt.
"""

from typing import NamedTuple

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "What is up?"},
    {"role": "assistant", "content": "The sky."},
    {"role": "user", "content": "And down?"},
    {"role": "assistant", "content": "The sea."},
]


class Family(NamedTuple):
    """A template, its control tokens, and what comes out."""

    template: str
    special: tuple[str, ...]
    rendered: str
    learnt: tuple[str, ...]
    prompt: str  # of all but the last turn
    system: bool = True
    bos: str | None = None  # of the tokenizer; the template writes it itself
    eos: str | None = None

    @property
    def messages(self) -> list[dict]:
        return [*([SYSTEM] if self.system else []), *TURNS]


CHATML = Family(
    template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    special=("<|im_start|>", "<|im_end|>"),
    rendered=(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is up?<|im_end|>\n"
        "<|im_start|>assistant\nThe sky.<|im_end|>\n<|im_start|>user\nAnd down?<|im_end|>\n"
        "<|im_start|>assistant\nThe sea.<|im_end|>\n"
    ),
    learnt=("The sky.<|im_end|>", "The sea.<|im_end|>"),
    prompt=(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is up?<|im_end|>\n"
        "<|im_start|>assistant\nThe sky.<|im_end|>\n<|im_start|>user\nAnd down?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    eos="<|im_end|>",
)
LLAMA3 = Family(
    template=(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    special=("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    rendered=(
        "<|begin|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is up?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe sky.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd down?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe sea.<|eot_id|>"
    ),
    learnt=("The sky.<|eot_id|>", "The sea.<|eot_id|>"),
    prompt=(
        "<|begin|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is up?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe sky.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd down?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    bos="<|begin|>",
)
ZEPHYR = Family(
    template=(
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    special=(),
    rendered=(
        "<|system|>\nBe brief.<eos>\n<|user|>\nWhat is up?<eos>\n<|assistant|>\nThe sky.<eos>\n"
        "<|user|>\nAnd down?<eos>\n<|assistant|>\nThe sea.<eos>\n"
    ),
    learnt=("The sky.<eos>", "The sea.<eos>"),
    prompt=(
        "<|system|>\nBe brief.<eos>\n<|user|>\nWhat is up?<eos>\n<|assistant|>\nThe sky.<eos>\n"
        "<|user|>\nAnd down?<eos>\n<|assistant|>\n"
    ),
)
MISTRAL = Family(  # nothing is added where an answer is to begin
    template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('user and assistant only') }}{% endif %}{% endfor %}"
    ),
    special=(),
    rendered=(
        "<bos>[INST] What is up? [/INST] The sky.<eos>[INST] And down? [/INST] The sea.<eos>"
    ),
    learnt=(" The sky.<eos>", " The sea.<eos>"),
    prompt="<bos>[INST] What is up? [/INST] The sky.<eos>[INST] And down? [/INST]",
    system=False,
    bos="<bos>",
)
GEMMA = Family(
    template=(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    special=("<start_of_turn>", "<end_of_turn>"),
    rendered=(
        "<bos><start_of_turn>user\nWhat is up?<end_of_turn>\n"
        "<start_of_turn>model\nThe sky.<end_of_turn>\n"
        "<start_of_turn>user\nAnd down?<end_of_turn>\n"
        "<start_of_turn>model\nThe sea.<end_of_turn>\n"
    ),
    learnt=("The sky.<end_of_turn>", "The sea.<end_of_turn>"),
    prompt=(
        "<bos><start_of_turn>user\nWhat is up?<end_of_turn>\n"
        "<start_of_turn>model\nThe sky.<end_of_turn>\n"
        "<start_of_turn>user\nAnd down?<end_of_turn>\n<start_of_turn>model\n"
    ),
    system=False,
    bos="<bos>",
)


def marked(inside: str) -> str:
    """ChatML with marks; `inside` is what they enclose of content and closing token."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' %}"
        + inside
        + "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


FAMILIES = {
    "chatml": CHATML,
    "chatml, marked": CHATML._replace(
        template=marked("{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}")
    ),
    "chatml, content marked": CHATML._replace(
        template=marked(
            "{%- generation -%}{{ message.content }}{%- endgeneration -%}{{ '<|im_end|>' }}"
        )
    ),
    "llama 3": LLAMA3,
    "zephyr": ZEPHYR,
    "mistral": MISTRAL,
    "gemma": GEMMA,
}
