"""The training loss equals the objective of generation.

Each test fails when the part it names is broken.
"""
import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import HiggsAudioV2ForConditionalGeneration
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import HiggsAudioV2DecoderLayer

from higgs_vi import generate as generation
from higgs_vi.adapters import add_lora, lora_config
from higgs_vi.batch import Example, build_example, collate, to_hf_inputs
from higgs_vi.delay import IGNORE, delay, undelay
from higgs_vi.generate import GREEDY, Guidance, generate_delayed_codes, with_guidance
from higgs_vi.loop import build_model
from higgs_vi.model import (
    Checkpoint,
    RoutedLayer,
    add_routing,
    nano_config,
    route_positions,
    unwrap_peft,
)
from higgs_vi.prompt import (
    TASKS,
    Prompt,
    Reference,
    audio_placeholder_ids,
    encode_prompt,
    tiny_tokenizer,
)
from higgs_vi.recipe import TrainSettings
from higgs_vi.step import audio_loss, hidden_states, target_counts, target_logits, train_step


def stock(model):
    "A copy of `model` with HF's own decoder layers."
    model = copy.deepcopy(model)
    for layer in unwrap_peft(model).model.layers: layer.__class__ = HiggsAudioV2DecoderLayer
    return model


def sound(seed, frames): return np.random.default_rng(seed).integers(0, 1024, (8, frames))


def prompts():
    "One prompt of each task, with the reference in both positions."
    refs = tuple(
        Reference(t, sound(i, 9 + 4 * i)) for i, t in enumerate(["Cảm ơn chị.", "Chào bác ạ."])
    )
    talk = "[SPEAKER0] Chào chị. [SPEAKER1] Chào em."
    return [
        Prompt("Xin chào."),
        Prompt("Mời anh ngồi.", task="zero_shot_voice_cloning", references=refs[:1]),
        Prompt("Mời anh ngồi.", task="zero_shot_voice_cloning", references=refs[:1], place="scene"),
        Prompt(talk, task="multi_speaker_smart_voice"),
        Prompt(talk, task="multi_speaker_voice_cloning", references=refs),
        Prompt(talk, task="multi_speaker_voice_cloning", references=refs, place="scene"),
    ]


def mixed_examples(tokenizer):
    "Examples of different lengths, with and without references."
    return [
        build_example(tokenizer, p, sound(10 + i, 3 + 7 * i), str(i))
        for i, p in enumerate(prompts())
    ]


# --- 1: no copy task ------------------------------------------------------------------------------

def noise_batch(tokenizer, rng, clips=4, frames=50):
    return collate(
        [
            build_example(
                tokenizer, Prompt("Xin chào.", scene=None), rng.integers(0, 1024, (8, frames))
            )
            for _ in range(clips)
        ],
        tokenizer,
    )


def unshifted(batch): return batch | dict(predict_at=batch["predict_at"] + 1)


def code_cross_entropy(model, batch):
    "Mean cross-entropy over the targets that are codes (not EOS)."
    with torch.no_grad(): logits = target_logits(model, batch)
    codes = (batch["targets"] >= 0) & (batch["targets"] < 1024)
    return F.cross_entropy(logits[codes], batch["targets"][codes]).item()


def train_on_noise(spoil):
    """Return the held-out cross-entropy after 200 steps on fresh random codes; `spoil` may damage
    the batch.

    Head and embedding start equal, which helps a model that copies its input most, so that 200
    steps reveal leaking labels.
    """
    tokenizer, rng = (
        tiny_tokenizer(["Xin chào. Generate audio following instruction."]),
        np.random.default_rng(0),
    )
    torch.manual_seed(0)
    config = nano_config(tokenizer, hidden=256, layers=1)
    model = add_routing(HiggsAudioV2ForConditionalGeneration(config)).train()
    with torch.no_grad():
        model.audio_lm_head.weight.copy_(
            model.model.embed_audio_tokens.embed_audio_tokens.weight.normal_(0, 1 / 16)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(200):
        train_step(model, optimizer, [spoil(noise_batch(tokenizer, rng))])
    return code_cross_entropy(model.eval(), spoil(noise_batch(tokenizer, rng, clips=16)))


def test_noise_cannot_be_learnt():
    assert math.log(1024) - 0.02 <= train_on_noise(lambda b: b) < math.log(1024) + 0.3


def test_an_unshifted_label_would_be_a_copy_task():
    assert train_on_noise(unshifted) < 1


# --- 2: targets -----------------------------------------------------------------------------------

@pytest.mark.parametrize("frames", [1, 2, 7, 40])
def test_targets_are_the_codes_and_the_first_eos(parts, frames):
    codes = sound(0, frames)
    e = build_example(parts.tokenizer, Prompt("Xin chào."), codes)
    for k in range(8):
        asked = e.labels[:, k][e.labels[:, k] != IGNORE]
        assert asked.tolist() == codes[k].tolist() + [1025]
    assert (undelay(delay(codes)) == codes).all() and len(e.delayed_codes) == frames + 9


# --- 3: a batch is the weighted mean of its clips -------------------------------------------------

def plain_loss(model, e):
    """An independent loss: HF's forward on one clip and a loop over frames and codebooks.

    Returns the loss summed over codebooks, as HF does.
    """
    ids, delayed_codes = (
        torch.from_numpy(e.input_ids)[None],
        torch.from_numpy(e.delayed_codes)[None],
    )
    out = model(
        input_ids=ids,
        audio_input_ids=delayed_codes,
        audio_input_ids_mask=torch.ones(delayed_codes.shape[:2], dtype=torch.bool),
        use_cache=False,
    )
    logp = out.logits[0].unflatten(-1, (8, 1026)).log_softmax(-1)
    audio = [
        i
        for i, t in enumerate(e.input_ids)
        if t in (model.config.audio_token_id, model.config.audio_delay_token_id)
    ]
    per_codebook = []
    for k in range(8):
        terms = [
            -logp[audio[c] - 1, k, label]
            for c, label in enumerate(e.labels[:, k])
            if label != IGNORE
        ]
        per_codebook.append(sum(terms) / len(terms))
    return sum(per_codebook)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(a, b, tol=1e-5):
    assert a.keys() == b.keys()
    for n in a: assert (a[n] - b[n]).abs().max() <= tol, n


@pytest.fixture(scope="module")
def reference_step(parts):
    """Loss and gradients of the weighted mean of single-clip losses by `plain_loss` on the stock
    model.
    """
    model, examples = stock(parts.model), mixed_examples(parts.tokenizer)
    targets = [(e.labels != IGNORE).sum() for e in examples]
    loss = sum(plain_loss(model, e)*n for e, n in zip(examples, targets, strict=True))/sum(targets)
    loss.backward()
    return examples, loss.item(), gradients(model)


@pytest.mark.parametrize("split", [[6], [1, 1, 1, 1, 1, 1], [2, 4], [5, 1]])
def test_loss_and_gradients_of_a_step_do_not_depend_on_its_split(parts, reference_step, split):
    examples, want, grads = reference_step
    model, cuts = copy.deepcopy(parts.model), np.cumsum([0, *split])
    batches = [collate(examples[a:b], parts.tokenizer) for a, b in pairwise(cuts)]
    counts, total = target_counts(batches), 0.0
    for batch in batches:
        loss = audio_loss(model, batch, counts)
        loss.total.backward()
        total += loss.total.item()
    assert abs(total - want) <= 1e-6*want
    assert_equal_gradients(gradients(model), grads)


@pytest.mark.parametrize("split", [[1, 1, 1, 1, 1, 1], [2, 4]])
def test_train_step_counts_the_targets_of_all_its_batches(parts, reference_step, split):
    "One SGD step ends at the same weights however the clips are split into batches."
    examples, ends = reference_step[0], []
    for sizes in ([6], split):
        model, cuts = copy.deepcopy(parts.model), np.cumsum([0, *sizes])
        batches = [collate(examples[a:b], parts.tokenizer) for a, b in pairwise(cuts)]
        train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batches, max_norm=1e9)
        ends.append(model)
    for (n, a), (_, b) in zip(*(m.named_parameters() for m in ends), strict=True):
        assert (a - b).abs().max() <= 2e-5, n
    assert any(
        (b - c).abs().max() > 1e-2
        for b, c in zip(ends[1].parameters(), parts.model.parameters(), strict=True)
    )


def test_equal_weights_give_hf_s_own_number(parts, reference_step):
    batch = collate(reference_step[0], parts.tokenizer)
    with torch.no_grad():
        theirs = stock(parts.model)(
            **to_hf_inputs(reference_step[0], parts.tokenizer), use_cache=False
        ).loss
        assert abs(theirs.item() - audio_loss(parts.model, batch).total.item()) < 1e-5


def test_codebook_weights_are_scaled_to_sum_to_eight(parts, reference_step):
    batch = collate(reference_step[0], parts.tokenizer)
    with torch.no_grad():
        loss = audio_loss(parts.model, batch, weights=[8, 8, 6, 6, 4, 4, 2, 2])
        assert torch.allclose(
            loss.total.double(),
            (loss.tally[0] / loss.tally[1] * torch.tensor([8, 8, 6, 6, 4, 4, 2, 2]) / 40 * 8).sum(),
        )


def test_the_text_s_loss_is_hf_s_own(parts, reference_step):
    examples, audio, audio_grads = reference_step
    own = copy.deepcopy(parts.model)
    own.text_lm_head = torch.nn.Linear(own.config.hidden_size, own.config.vocab_size, bias=False)
    model, sums, n = stock(own), 0.0, 0
    for e in examples:
        ids = torch.from_numpy(e.input_ids)
        text = ~torch.isin(
            ids, torch.tensor([model.config.audio_token_id, model.config.audio_delay_token_id])
        )
        asked = text & torch.cat([text.new_zeros(1), text[:-1]])
        delayed_codes = torch.from_numpy(e.delayed_codes)[None]
        loss = model(
            input_ids=ids[None],
            audio_input_ids=delayed_codes,
            audio_input_ids_mask=torch.ones(delayed_codes.shape[:2], dtype=torch.bool),
            labels=torch.where(asked, ids, -100)[None],
            use_cache=False,
        ).loss
        sums, n = sums + loss * asked.sum(), n + int(asked.sum())
    (0.3 * sums / n).backward()
    batch = collate(
        examples * 5, parts.tokenizer, 0.3 / (5 * n)
    )  # more text than is asked at a time
    loss = audio_loss(own, batch)
    assert (
        5 * n > 4 * 256
        and loss.tally[4, 1] == 5 * n
        and abs(loss.tally[4, 0] / (5 * n) - sums.item() / n) < 1e-5
    )
    assert abs(loss.total.item() - audio - 0.3 * sums.item() / n) < 1e-5
    loss.total.backward()
    theirs = gradients(model)
    grads = {
        k: audio_grads.get(k, 0) + theirs.get(k, 0) for k in audio_grads.keys() | theirs.keys()
    }
    assert_equal_gradients(gradients(own), grads)
    del own.text_lm_head
    own.text_lm_head = None
    with pytest.raises(ValueError, match="text head"):
        audio_loss(own, batch)


def test_padding_and_company_change_nothing(parts, reference_step):
    """Padding and batch mates do not change a clip's loss, also with LoRA and trainable audio
    embeddings.
    """
    model = add_lora(
        copy.deepcopy(parts.model),
        lora_config(targets=["attention", "text_ffn", "audio_ffn"], audio_embeddings=True),
    )
    with torch.no_grad():
        got = audio_loss(model.eval(), collate(reference_step[0], parts.tokenizer)).total.item()
    assert abs(got - reference_step[1]) <= 1e-6 * reference_step[1]


def test_two_blocks_are_hf_s_forward(parts):
    """Last hidden states and gradients equal HF's, with adapters on every group, with recomputed
    activations, and for text without audio.
    """
    examples = mixed_examples(parts.tokenizer)
    batch, padded, found = (
        collate(examples, parts.tokenizer),
        to_hf_inputs(examples, parts.tokenizer),
        [],
    )
    padded.pop("audio_labels")
    for way in ("stock", "blocks", "recomputed"):
        torch.manual_seed(0)
        model = add_lora(
            stock(parts.model) if way == "stock" else copy.deepcopy(parts.model),
            lora_config(
                targets=["attention", "text_ffn", "audio_ffn"], audio_embeddings=True, dropout=0.0
            ),
        )
        for n, p in model.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.05)  # they begin at zero, where nothing of A is seen
        unwrap_peft(model).model.gradient_checkpointing = way == "recomputed"
        model.train()
        rows = (
            model.get_base_model()
            .model(**padded, use_cache=False)
            .last_hidden_state.flatten(0, 1)[batch["predict_at"]]
            if way == "stock"
            else hidden_states(model, batch)
        )
        (rows.sin().sum() / 100).backward()
        found.append((rows.detach(), gradients(model)))
    for rows, grads in found[1:]:
        assert (rows - found[0][0]).abs().max() < 1e-5
        assert len(grads) > 20
        assert_equal_gradients(grads, found[0][1])  # their largest are about 1


def branches(parts):
    "Arguments that reach each branch of HF's layer forward."
    examples, rng = mixed_examples(parts.tokenizer), np.random.default_rng(5)
    padded, delayed_codes = (
        to_hf_inputs(examples, parts.tokenizer),
        torch.from_numpy(rng.integers(0, 1024, (2, 30, 8))),
    )
    left = {k: v.clone() for k, v in to_hf_inputs(examples[:2], parts.tokenizer).items()}
    for b, e in enumerate(examples[:2]):
        for k in ("input_ids", "attention_mask"):
            left[k][b] = left[k][b].roll(left[k].shape[1] - len(e))
    left.pop("audio_labels")
    return dict(
        references=padded,
        left=left,
        sound_alone=dict(audio_input_ids=delayed_codes),
        text_alone=dict(
            input_ids=torch.arange(100, 160).view(2, 30),
            attention_mask=torch.ones(2, 30, dtype=torch.long),
        ),
    )


@pytest.mark.parametrize("branch", ["references", "left", "sound_alone", "text_alone"])
@pytest.mark.parametrize("recompute", [False, True])
def test_routed_layers_are_hf_s_layers(parts, branch, recompute):
    """Logits and all gradients are equal in each branch of HF's layer, and HF's layers keep their
    names.
    """
    inputs, found = branches(parts)[branch], []
    for model in (stock(parts.model), copy.deepcopy(parts.model)):
        if recompute:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=dict(use_reentrant=False)
            )
        out = model.train()(**inputs, use_cache=False)
        logits = (
            out.logits
            if inputs.get("attention_mask") is None
            else out.logits[inputs["attention_mask"].bool()]
        )
        (logits.sin().sum() / 100).backward()
        found.append((logits.detach(), gradients(model)))
    (a, x), (b, y) = found
    assert (
        isinstance(model.model.layers[0], RoutedLayer)
        and parts.model.state_dict().keys() == stock(parts.model).state_dict().keys()
    )
    assert (a - b).abs().max() < 1e-5
    assert_equal_gradients(x, y)


def test_a_wrong_route_is_seen(parts, monkeypatch):
    """The comparison above fails when text and audio positions are swapped, and holds under mixed
    precision.
    """
    inputs = branches(parts)["references"]
    with torch.no_grad():
        want = stock(parts.model)(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            assert (
                parts.model(**inputs).logits - stock(parts.model)(**inputs).logits
            ).abs().max() < 0.05
        monkeypatch.setattr("higgs_vi.model.route_positions", lambda mask: route_positions(~mask))
        assert (parts.model(**inputs).logits - want).abs().max() > 0.1


def test_routed_layers_decode_as_hf_s(parts):
    "HF's own greedy `generate` with cache and a reference gives the same delayed codes."
    ids, delayed_codes = encode_prompt(parts.tokenizer, prompts()[1])
    inputs = dict(
        input_ids=torch.from_numpy(ids)[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        audio_input_ids=torch.from_numpy(delayed_codes)[None],
        audio_input_ids_mask=torch.ones(1, len(delayed_codes), dtype=torch.bool),
    )
    said = [
        m.generate(**inputs, max_new_tokens=20, do_sample=False)
        for m in (stock(parts.model), parts.model)
    ]
    said = [getattr(s, "audio_sequences", s) for s in said]
    assert torch.equal(*said) and said[0].shape[1] >= 20


def test_heads_copied_for_older_cards_are_the_same(parts, reference_step, monkeypatch):
    monkeypatch.setattr("higgs_vi.step._supports_gqa", lambda v: False)
    with torch.no_grad():
        got = audio_loss(parts.model, collate(reference_step[0], parts.tokenizer)).total.item()
    assert abs(got - reference_step[1]) <= 1e-6 * reference_step[1]


@pytest.mark.parametrize("checkpointing", [0, 1, 2])
def test_the_parameter_checkpointing_recomputes_every_nth_layer(parts, monkeypatch, checkpointing):
    calls = []
    monkeypatch.setattr(
        "higgs_vi.step.checkpoint", lambda f, *a, **k: calls.append(a[0]) or checkpoint(f, *a, **k)
    )
    own = Checkpoint(copy.deepcopy(parts.model), parts.tokenizer, parts.codec)
    model = build_model(TrainSettings(gradient_checkpointing=checkpointing, lora_rank=2), own)
    audio_loss(
        model, collate(mixed_examples(parts.tokenizer)[:1], parts.tokenizer)
    ).total.backward()
    assert calls == (
        list(unwrap_peft(model).model.layers)[::checkpointing] if checkpointing else []
    )


def test_compiled_layers_are_the_layers(parts, monkeypatch):
    from higgs_vi import step

    real, asked = torch.compile, []
    monkeypatch.setattr(
        torch, "compile", lambda f, **how: asked.append(how) or real(f, backend="aot_eager", **how)
    )
    step._compiled.cache_clear()
    model = add_lora(
        copy.deepcopy(parts.model),
        lora_config(rank=2, targets=["attention", "audio_ffn"], dropout=0.0),
    ).train()
    examples, seen = mixed_examples(parts.tokenizer), {}
    for compiled, every in ((False, 0), (True, 0), (True, 1)):
        unwrap_peft(model).model.compiled, unwrap_peft(model).model.gradient_checkpointing = (
            compiled,
            every,
        )
        for chosen in (examples, examples[:2], examples[1:]):
            audio_loss(model, collate(chosen, parts.tokenizer)).total.backward()
        seen[compiled, every] = {
            n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
        }
        model.zero_grad()
    step._compiled.cache_clear()
    assert asked == [dict(dynamic=True)]
    for grads in (seen[True, 0], seen[True, 1]):
        assert (
            all(
                torch.allclose(g, grads[n], rtol=1e-4, atol=1e-6) for n, g in seen[False, 0].items()
            )
            and len(grads) > 8
        )


def test_a_compiled_layer_is_given_no_names(parts, monkeypatch):
    """PyTorch 2.11 recompiles for every new list length and gives up after eight; batches with
    different numbers of clips must not trigger that.
    """
    from higgs_vi import step

    given = []
    monkeypatch.setattr(
        step, "_compiled", lambda: lambda *args: given.append(args[-1]) or step._layer(*args)
    )
    model = copy.deepcopy(parts.model)
    unwrap_peft(model).model.compiled = True
    audio_loss(model, collate(mixed_examples(parts.tokenizer), parts.tokenizer))
    assert given and all(
        type(v) in (torch.Tensor, tuple) for where in given for v in where.values()
    )


@pytest.mark.parametrize("fault", ["other network", "other place", "other company"])
def test_a_wrong_way_through_the_blocks_is_seen(parts, reference_step, fault):
    """The comparison with HF's forward fails when a block uses the wrong FFN, or attention gets the
    wrong sequence.
    """
    model, batch = copy.deepcopy(parts.model), collate(reference_step[0], parts.tokenizer)
    if fault == "other network":
        model.model.layers[0].mlp, model.model.layers[0].audio_mlp = (
            model.model.layers[0].audio_mlp,
            model.model.layers[0].mlp,
        )
    if fault == "other place":
        batch["place"] = batch["place"].flip(0)
    if fault == "other company":
        batch["order"] = batch["order"].view(batch["shape"]).roll(1, 0).flatten()
    with torch.no_grad():
        assert (
            abs(audio_loss(model, batch).total.item() - reference_step[1])
            > 1e-4 * reference_step[1]
        )


def test_a_wrong_shift_is_seen(parts, reference_step):
    """The comparison above can fail: labels shifted by one frame give another loss and other
    gradients.
    """
    batch = unshifted(collate(reference_step[0], parts.tokenizer))
    model = copy.deepcopy(parts.model)
    loss = audio_loss(model, batch)
    loss.total.backward()
    assert abs(loss.total.item() - reference_step[1]) > 1e-4
    with pytest.raises(AssertionError): assert_equal_gradients(gradients(model), reference_step[2])


# --- 4 to 6: what was trained is what is spoken ---------------------------------------------------

def greedy(own, prompt, limit=120):
    "Delayed codes `(L, K)` from HF's greedy `generate` without RAS."
    ids, delayed_codes = encode_prompt(own.tokenizer, prompt)
    inputs = dict(
        input_ids=torch.from_numpy(ids)[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    )
    if len(delayed_codes):
        inputs |= dict(
            audio_input_ids=torch.from_numpy(delayed_codes)[None],
            audio_input_ids_mask=torch.ones(1, len(delayed_codes), dtype=torch.bool),
        )
    out = own.model.generate(**inputs, do_sample=False, max_new_tokens=limit, ras_win_len=None)
    return out[0, len(delayed_codes) :].numpy()


def test_it_learnt_the_clips(overfitted):
    assert overfitted.losses[-1] < 0.05 < 6 < overfitted.losses[0]


def test_offset_audit(overfitted):
    """The cross-entropy of frame j's prediction against the ids at frames j-1, j, j+1 and j+2
    (codes only) is smallest at j+1, the offset that generation uses.
    """
    batch = to_hf_inputs(overfitted.examples, overfitted.tokenizer)
    with torch.no_grad():
        logits = overfitted.model(**batch, use_cache=False).logits
    logits, ce = logits.unflatten(-1, (8, 1026)), {}
    audio = [
        (
            (ids == overfitted.model.config.audio_token_id)
            | (ids == overfitted.model.config.audio_delay_token_id)
        ).nonzero()[:, 0]
        for ids in batch["input_ids"]
    ]
    for offset in (-1, 0, 1, 2):
        terms = []
        for b, places in enumerate(audio):
            delayed_codes = batch["audio_input_ids"][b, : len(places)]
            for j in range(max(0, -offset), len(places) - max(0, offset)):
                codes = delayed_codes[j + offset] < 1024
                if codes.any():
                    terms.append(
                        F.cross_entropy(
                            logits[b, places[j]][codes],
                            delayed_codes[j + offset][codes],
                            reduction="none",
                        )
                    )
        ce[offset] = torch.cat(terms).mean().item()
    assert (
        min(ce, key=ce.get) == 1 and ce[1] < 0.1 and all(v > 3 for o, v in ce.items() if o != 1)
    ), ce


def test_greedy_generation_gives_the_clips_back_and_stops(overfitted, clips):
    for prompt, codes in clips:
        spoken = undelay(greedy(overfitted, prompt))
        assert abs(spoken.shape[1] - codes.shape[1]) <= 1
        n = min(spoken.shape[1], codes.shape[1])
        assert np.mean(spoken[:, :n] == codes[:, :n]) >= 0.99


def forced_logits(own, prompt, delayed_codes, words=True):
    """Logits `(L - 1, K, V)` of the training forward at every frame of `delayed_codes` `(L, K)` but
    the first.
    """
    ids, refs = encode_prompt(own.tokenizer, prompt, words=words)
    labels = np.concatenate(
        [np.full_like(refs, IGNORE), np.full_like(delayed_codes[:1], IGNORE), delayed_codes[1:]]
    )
    e = Example(
        np.concatenate([ids, audio_placeholder_ids(own.tokenizer, *delayed_codes.shape)]),
        np.concatenate([refs, delayed_codes]),
        labels,
    )
    with torch.no_grad():
        return target_logits(own.model, collate([e], own.tokenizer))


def teacher_forced(own, prompt, delayed_codes):
    "Predictions `(L - 1, K)` of the training forward for frames 1 to L-1."
    return forced_logits(own, prompt, delayed_codes).argmax(-1).numpy()


def free_places(delayed_codes):
    """A mask `(L - 1, K)` of the places where generation chooses freely.

    Codebook k is forced to BOS up to frame k, and to the EOS ramp from the first EOS on.
    """
    ended = np.cumsum((delayed_codes == 1025).any(1))[:-1] > 0
    return (np.arange(1, len(delayed_codes))[:, None] > np.arange(8)) & ~ended[:, None]


@pytest.mark.parametrize("which", range(6))
def test_teacher_forcing_says_what_greedy_generation_says(parts, which):
    """At every (frame, codebook) that generation does not force, for an untrained model and all
    tasks.
    """
    prompt = prompts()[which]
    delayed_codes = greedy(parts, prompt, limit=30)
    said = teacher_forced(parts, prompt, delayed_codes)
    free = free_places(delayed_codes)
    assert (said == delayed_codes[1:])[free].all() and free.sum() > 30


@pytest.mark.parametrize("which", range(6))
def test_guidance_is_the_difference_of_two_plain_forwards(parts, which):
    """Compared with forwards without a cache over prompt and delayed codes, with and without the
    prompt's text, for all tasks.
    """
    prompt = prompts()[which]
    delayed_codes = generate_delayed_codes(
        parts, prompt, replace(GREEDY, max_seconds=1.2, guidance_scale=3.0)
    )
    c, u = (forced_logits(parts, prompt, delayed_codes, words) for words in (True, False))
    free = free_places(delayed_codes)
    assert ((u + 3 * (c - u)).argmax(-1).numpy() == delayed_codes[1:])[
        free
    ].all() and free.sum() > 30
    assert (c.argmax(-1).numpy() != delayed_codes[1:])[free].any()


def test_guidance_away_from_the_prompt_itself_changes_nothing(parts):
    for prompt in prompts()[:2]:
        plain, whole = greedy(parts, prompt, limit=30), generation._inputs(parts, prompt)
        with with_guidance(parts.model, Guidance(whole, 3.0)):
            again = greedy(parts, prompt, limit=30)
        assert (again == plain).all() and not parts.model._forward_hooks


def test_guidance_is_what_the_checkpoint_asks_for_or_nothing(parts):
    "A hook that fails or has ended leaves the model unchanged."
    own, prompt = copy.deepcopy(parts), Prompt("Xin chào.")
    def said(guidance):
        return generate_delayed_codes(
            own, prompt, replace(GREEDY, max_seconds=0.6, guidance_scale=guidance)
        ).tolist()
    plain, strong = said(1.0), said(3.0)
    assert said(0.0) == plain != strong
    own.model.generation_config.text_guidance = 3.0
    assert said(0.0) == strong and said(1.0) == plain
    with pytest.raises(ValueError, match="guidance"):
        said(-1.0)


def test_teacher_forcing_says_the_clip_and_every_first_eos(overfitted, clips):
    for prompt, codes in clips:
        e = build_example(overfitted.tokenizer, prompt, codes)
        spoken = greedy(overfitted, prompt)
        said = teacher_forced(overfitted, prompt, delay(codes))
        asked = e.labels[1:] != IGNORE
        assert (said[asked] == e.labels[1:][asked]).mean() >= 0.99
        rows = min(len(spoken), len(e.delayed_codes)) - 1
        assert (spoken[1:rows + 1] == said[:rows])[asked[:rows]].all()


# --- 7: references --------------------------------------------------------------------------------

def test_reference_codes_are_the_reference_s_own_and_never_asked(parts):
    target = sound(99, 20)
    for p in prompts():
        e = build_example(parts.tokenizer, p, target)
        own = [delay(r.codes) for r in p.references]
        n = sum(map(len, own))
        assert (e.delayed_codes[:n] == np.concatenate([np.zeros((0, 8), int), *own])).all() and (
            e.delayed_codes[n:] == delay(target)
        ).all()
        assert (e.labels[:n] == IGNORE).all() and (e.labels[n:] != IGNORE).sum() == 8 * 21
    assert {p.task for p in prompts()} == set(TASKS)
