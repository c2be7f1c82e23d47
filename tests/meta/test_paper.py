"""The `paper` preset, step by step, against docs/method.md, section 3, written out once more in plain torch.

The transcription shares nothing with the library but its noise (which episode, which rows, which normal draws): the
adapted layers are hooks on an untouched base model, prompts are written by hand, densities come in textbook form.
"""

import math

import torch
from peft import get_peft_model

import tiny
from abmll import noise
from abmll.adapter import state
from abmll.adapter.config import AbmllConfig
from abmll.experiment.presets import preset
from abmll.hashing import stable_hash
from abmll.meta import make_meta_learner
from abmll.scoring import make_scorer
from abmll.tasks import Example, Task

K, BETA, GAMMA, LOG_C, R, ALPHA, RATE = 5, 1e-8, 1e-8, -20.0, 8, 16, 0.01
INNER_LR, OUTER_LR = 1e-5, 5e-5
TOLERANCE = 1e-8  # parameters move by 1e-4 and more
WORDS = tiny.tokenizer()


def turn(task, example):
    """Ids of the whole conversation, and how many of them are the assistant's: its header, the letter, the end."""
    lines = [f"{letter}) {option}" for letter, option in zip("ABCD", example.options, strict=False)]
    question = "Return only the label of the correct answer for the question below.\n\n"
    question += "\n".join([f"{task}: {example.input}", "Choices:", *lines, "Answer:"])
    user = {"role": "user", "content": question}
    answer = {"role": "assistant", "content": "ABCD"[example.options.index(example.output)]}
    whole, asked = (WORDS.apply_chat_template(c, tokenize=False) for c in ([user, answer], [user]))
    ids = WORDS(whole, add_special_tokens=False).input_ids
    return ids, len(ids) - len(WORDS(asked, add_special_tokens=False).input_ids)


class Transcription:
    """theta, phi and the two optimisers, around a base model that knows nothing of them."""

    def __init__(self, base, theta, n_tasks, address):
        self.base, self.n_tasks, self.address = base, n_tasks, address
        self.theta = {k: v.clone().requires_grad_() for k, v in theta.items()}
        self.phi = {k: v.clone().requires_grad_() for k, v in theta.items()}
        self.inner = torch.optim.AdamW(self.phi.values(), lr=INNER_LR, weight_decay=0.0)
        self.outer = torch.optim.AdamW(self.theta.values(), lr=OUTER_LR, weight_decay=0.0)
        self.step = lambda x: x
        for name, module in base.named_modules():
            if f"{name}.abmll_A" in theta:
                module.register_forward_hook(lambda _, args, y, name=name: y + self.adapter(name, *args))

    def gaussian(self, side, name, x):
        A_m, B_m, A_l, B_l = (side[f"{name}.abmll_{p}"] for p in ("A", "B", "logvar_A", "logvar_B"))
        return ALPHA / R * x @ A_m.T @ B_m.T, ALPHA / R * x @ A_l.T @ B_l.T + LOG_C

    def adapter(self, name, x):
        x = self.step(x)  # the outer step detaches it
        m_phi, l_phi = self.gaussian(self.phi, name, x)
        m_theta, l_theta = self.gaussian(self.theta, name, x)
        eps = noise.normal(self.address(self.key, name), m_phi.shape[-1], x.dtype)
        z = m_phi + torch.exp(l_phi / 2) * eps

        def log_normal(m, l):
            return -0.5 * (math.log(2 * math.pi) + l + (z - m) ** 2 / torch.exp(l))

        self.kl = self.kl + (log_normal(m_phi, l_phi) - log_normal(m_theta, l_theta)).sum()
        gamma_density = math.log(RATE) - RATE * torch.exp(-l_theta)
        self.log_p = self.log_p + (gamma_density - 0.5 * (m_theta**2 + math.log(2 * math.pi))).sum()
        return z

    def forward(self, task, examples, key):
        """Summed NLL of the assistant's tokens over the vocabulary; padded on the left, the KL counts padding."""
        self.kl = self.log_p = torch.zeros(())
        self.key = (key, task, examples)
        turns = [turn(task, e) for e in examples]
        width = max(len(ids) for ids, _ in turns)
        ids = torch.tensor([[0] * (width - len(i)) + i for i, _ in turns])
        real = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i, _ in turns])
        position = (real.cumsum(1) - 1).clamp(min=0)
        log_p = self.base(ids, attention_mask=real, position_ids=position).logits.log_softmax(-1)
        return -sum(
            log_p[i, width - 1 - j, ids[i, width - j]] for i, (_, n) in enumerate(turns) for j in range(1, n + 1)
        )

    def episode(self, task, batches, key):
        with torch.no_grad():
            for name, p in self.phi.items():
                p.copy_(self.theta[name])
        for k in range(K):
            self.step = lambda x: x
            loss = self.forward(task, batches[k], stable_hash("meta noise", key, k, "posterior")) + BETA * self.kl
            self.inner.zero_grad()
            loss.backward(inputs=list(self.phi.values()))
            self.inner.step()
        self.step = lambda x: x.detach()
        self.forward(task, batches[K - 1], stable_hash("meta noise", key, K, "prior"))  # the last inner batch again
        loss = BETA * self.kl - GAMMA / self.n_tasks * self.log_p
        self.outer.zero_grad()
        loss.backward(inputs=list(self.theta.values()))
        self.outer.step()


def tasks():
    """Tasks whose rows differ in length and in the number of options: padding is there to be counted."""

    def row(i, output):
        return Example(("red cat " * (i % 4)).strip() + " owl ?", ("warm", "cold", "grey", "blue")[: 2 + i % 3], output)

    return [Task(f"t{t}", tuple(row(i + t, ("warm", "cold")[i * (t + 1) % 2]) for i in range(12))) for t in range(3)]


def test_the_paper_preset_is_the_method_written_out(base):
    config = preset("paper")
    assert (config.adapter.r, config.adapter.lora_alpha, config.adapter.latent) == (R, ALPHA, "output")
    torch.manual_seed(0)
    adapter = AbmllConfig(latent="output", r=R, lora_alpha=ALPHA, log_variance=config.adapter.log_variance)
    model = get_peft_model(base("gpt2"), adapter).eval()
    state.ensure_task_adapter(model)
    model.double()
    scorer = make_scorer(WORDS, config.scoring)
    learner = make_meta_learner(model, scorer, tasks(), config.meta, seed=1)

    def address(key, name):
        number, task, examples = key
        tokens = scorer.collate(task, examples).turns.tokens
        return tokens.address(number, stable_hash("layer", name), 0, "token")

    start = state.read(model, state.PRIOR)
    assert not any(tensor.any() for name, tensor in start.items() if name.endswith("_B"))  # m = 0, l = log c
    written = Transcription(base("gpt2").double(), start, 3, address)
    conv1d = {n for n, m in written.base.named_modules() if type(m).__name__ == "Conv1D"}
    assert {n.rpartition(".")[0] for n in start} == conv1d  # every one of GPT-2's: c_attn, c_proj, c_fc
    lengths = set()
    for index in range(5):  # T = 3: the fixed order comes round
        episode = learner.episodes(index, K)
        assert episode.task == f"t{index % 3}"
        assert [len(b) for b in episode.batches] == [2] * K
        lengths |= {len(turn(episode.task, e)[0]) for batch in episode.batches for e in batch}
        learner.step(index)
        written.episode(episode.task, episode.batches, episode.key)
        for name, side in ((state.PRIOR, written.theta), (state.TASK, written.phi)):
            now = state.read(model, name)
            for key, tensor in side.items():
                torch.testing.assert_close(now[key], tensor.detach(), rtol=0, atol=TOLERANCE)
    assert len(lengths) > 1  # there was padding
    for side in (written.theta, written.phi):  # a comparison of what never moved would say nothing
        assert min((tensor - start[key]).abs().max() for key, tensor in side.items()) > 1000 * TOLERANCE
