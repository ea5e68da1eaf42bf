"""Planted faults, and the tests that must fail under each.

`python -m tests.mutations [part of a name …]` plants each fault in a copy of the package and runs
the named tests; the slow test in tests/test_reach.py does the same. A fault is defined by the text
that it replaces. If the code has changed and that text is gone, the check fails and the entry must
be updated. `REACH`, `OBJECTIVE` … are test files; the words after them are names of tests in them.
"""
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REACH, OBJECTIVE, TRAINING = "test_reach", "test_objective", "test_training"


@dataclass(frozen=True)
class Mutation:
    """A fault to plant: `old`, which occurs once in `file` of the package, becomes `new`.

    At least one of `tests` in `where` must then fail.
    """
    name: str
    file: str
    old: str
    new: str
    where: str
    tests: tuple[str, ...]

    def places(self, text: str) -> list[tuple[int, int]]:
        "Return the positions of `old` in `text`, ignoring differences in spacing and line breaks."
        tokens = re.findall(r"\w+|[^\w\s]", self.old)
        return [m.span() for m in re.finditer(r",?\s*".join(map(re.escape, tokens)), text)]


def plant(name, file, old, new, where, *tests): return Mutation(name, file, old, new, where, tests)


SPLIT, SHIFT = (
    "test_loss_and_gradients_of_a_step_do_not_depend_on_its_split",
    "test_targets_are_the_codes_and_the_first_eos",
)
FORCED, GUIDED = (
    "test_teacher_forcing_says_what_greedy_generation_says",
    "test_guidance_is_the_difference_of_two_plain_forwards",
)
RESUMED, WRITTEN = (
    "test_a_resumed_run_ends_as_the_unbroken_one",
    "test_the_best_is_written_and_not_the_last",
)
MUTATIONS = [
    # loss
    plant(
        "loss: shift lost",
        "batch.py",
        "b*S + audio[supervised - 1]",
        "b*S + audio[supervised]",
        OBJECTIVE,
        SPLIT,
    ),
    plant(
        "loss: counts of the batch alone",
        "step.py",
        "(in_batch if counts is None else counts.to(ce.device))",
        "in_batch",
        OBJECTIVE,
        SPLIT,
    ),
    plant(
        "loss: codebook weights unscaled",
        "step.py",
        "return w*codebooks/w.sum()",
        "return w",
        OBJECTIVE,
        "test_codebook_weights_are_scaled_to_sum_to_eight",
    ),
    plant(
        "loss: codebook weights not passed on",
        "loop.py",
        "mine, cfg.codebook_weights or None, cfg.max_grad_norm",
        "mine, None, cfg.max_grad_norm",
        REACH,
        "test_codebook_weights_reach_loss_and_gradient",
    ),
    plant(
        "loss: validation without codebook weights",
        "loop.py",
        "per_target(tally, cfg.codebook_weights or None)",
        "per_target(tally)",
        REACH,
        "test_codebook_weights_reach_loss_and_gradient",
    ),
    plant(
        "loss: text weight of 1",
        "loop.py",
        "run.cfg.text_loss_weight/sum(",
        "1/sum(",
        REACH,
        "test_text_weight_is_the_weight_of_the_step_s_mean_text_loss",
    ),
    plant(
        "loss: text weighs nothing",
        "step.py",
        'text = text*batch["text_weight"]',
        "text = text*0",
        REACH,
        "test_text_weight_is_the_weight_of_the_step_s_mean_text_loss",
    ),
    # labels
    plant("labels: no EOS", "delay.py", "(t > k + T + 1)", "(t > k + T)", OBJECTIVE, SHIFT),
    plant(
        "labels: every EOS", "delay.py", "(t <= k) | (t > k + T + 1)", "t <= k", OBJECTIVE, SHIFT
    ),
    plant(
        "labels: BOS too",
        "delay.py",
        "(t <= k) | (t > k + T + 1)",
        "(t < k) | (t > k + T + 1)",
        OBJECTIVE,
        SHIFT,
    ),
    plant(
        "labels: references asked",
        "batch.py",
        "np.full_like(references, IGNORE)",
        "references",
        OBJECTIVE,
        "test_reference_codes_are_the_reference_s_own_and_never_asked",
    ),
    # delay
    plant(
        "delay: one column late",
        "delay.py",
        "delayed_codes[k + 1:k + 1 + T, k] = codes[k]",
        "delayed_codes[k + 2:k + 2 + T, k] = codes[k][:T - (k == K - 1)]",
        OBJECTIVE,
        SHIFT,
    ),
    plant(
        "delay: none",
        "delay.py",
        "frames = np.stack([delayed_codes[k:max(k, L - K + 1 + k), k]",
        "frames = np.stack([delayed_codes[0:max(0, L - K + 1), k]",
        OBJECTIVE,
        SHIFT,
    ),
    plant(
        "delay: BOS kept",
        "delay.py",
        "if len(frames) and (frames[0] == bos).all(): frames = frames[1:]",
        "",
        OBJECTIVE,
        SHIFT,
    ),
    # routing
    plant(
        "routing: text and sound change places",
        "model.py",
        "order = audio.flatten()",
        "order = (~audio).flatten()",
        OBJECTIVE,
        "test_routed_layers_are_hf_s_layers",
    ),
    plant(
        "routing: sound through the text's network",
        "step.py",
        "audio + layer.audio_mlp(",
        "audio + layer.mlp(",
        OBJECTIVE,
        SPLIT,
    ),
    plant(
        "routing: the text's norm for sound",
        "step.py",
        "layer.audio_input_layernorm(audio)]",
        "layer.input_layernorm(audio)]",
        OBJECTIVE,
        SPLIT,
    ),
    plant(
        "routing: attention sees the future",
        "step.py",
        "is_causal=True",
        "is_causal=False",
        OBJECTIVE,
        SPLIT,
    ),
    plant(
        "routing: positions of the block",
        "step.py",
        'positions = batch["place"] % batch["shape"][1]',
        'positions = batch["place"]*0',
        OBJECTIVE,
        SPLIT,
    ),
    # prompts
    plant(
        "prompts: another scene",
        "prompt.py",
        'quiet_room="Audio is recorded from a quiet room."',
        'quiet_room="Audio is recorded from quiet room."',
        REACH,
        "test_prompts_are_the_released_model_s",
    ),
    plant(
        "prompts: no eot",
        "prompt.py",
        "{content}<|eot_id|>",
        "{content}",
        REACH,
        "test_prompts_are_the_released_model_s",
    ),
    plant(
        "prompts: words where none are wanted",
        "prompt.py",
        "p.text*words",
        "p.text",
        REACH,
        "test_prompts_are_the_released_model_s",
    ),
    plant(
        "prompts: the other gender first",
        "prompt.py",
        "('feminine', 'masculine')",
        "('masculine', 'feminine')",
        REACH,
        "test_prompts_are_the_released_model_s",
    ),
    # guidance
    plant(
        "guidance: reversed",
        "generate.py",
        "torch.lerp(u.float(), out.logits[:, -1:].float()",
        "torch.lerp(out.logits[:, -1:].float(), u.float()",
        OBJECTIVE,
        GUIDED,
    ),
    plant(
        "guidance: scale ignored",
        "generate.py",
        "Guidance(_inputs(parts, prompt, words=False), scale)",
        "Guidance(_inputs(parts, prompt, words=False), 1.5)",
        OBJECTIVE,
        GUIDED,
    ),
    plant(
        "guidance: blind prompt with words",
        "generate.py",
        "Guidance(_inputs(parts, prompt, words=False), scale)",
        "Guidance(_inputs(parts, prompt), scale)",
        OBJECTIVE,
        GUIDED,
    ),
    # decoding engine
    plant(
        "the engine's rows see one position too few",
        "decoder.py",
        "seen = torch.arange(length, device=at.device) <= at[:, None]",
        "seen = torch.arange(length, device=at.device) < at[:, None]",
        "test_engine",
        "test_greedy_codes_are_those_of_hf",
    ),
    plant(
        "a row keeps the past of the request before",
        "engine.py",
        'self.state["past"][index] = torch.from_numpy(past).to(self.device)',
        "pass",
        "test_engine",
        "test_nothing_of_an_earlier_request_is_seen",
        "test_a_request_says_the_same_alone_and_while_rows_are_filled_again",
    ),
    plant(
        "a moved row leaves its partner behind",
        "engine.py",
        "moved.partner = target if moved.partner == source else moved.partner",
        "pass",
        "test_engine",
        "test_a_request_says_the_same_alone_and_while_rows_are_filled_again",
    ),
    plant(
        "every row uses all adapters",
        "decoder.py",
        "F.linear(inner * (self.owner == adapter[:, None]), self.up)",
        "F.linear(inner, self.up)",
        "test_engine",
        "test_several_adapters_in_one_batch_are_each_that_of_peft",
    ),
    plant(
        "the noise does not depend on the seed",
        "generate.py",
        "return mix_bits(mix_bits(mix_bits(seed) ^",
        "return mix_bits(mix_bits(mix_bits(seed * 0) ^",
        "test_engine",
        "test_the_noise_depends_on_seed_frame_codebook_code_and_stream",
    ),
    plant(
        "requests in work are lost when memory is short",
        "engine.py",
        "self.queue.extendleft(requests[n] for n in sorted(requests, reverse=True))",
        "pass",
        "test_engine",
        "test_with_too_little_memory_fewer_rows_are_used_and_nothing_is_lost",
    ),
    # adapter and merge
    plant(
        "merge: adapter dropped",
        "merge.py",
        "parts.model.merge_and_unload()",
        "parts.model.unload()",
        REACH,
        "test_a_merged_model_is_base_and_adapter",
    ),
    plant(
        "adapter: alpha lost",
        "loop.py",
        "lora_config(cfg.lora_rank, cfg.lora_alpha,",
        "lora_config(cfg.lora_rank, 32,",
        REACH,
        "test_alpha_scales_the_adapter",
    ),
    plant(
        "adapter: alpha is twice as much",
        "adapters.py",
        "lora_alpha=alpha",
        "lora_alpha=2*alpha",
        REACH,
        "test_alpha_scales_the_adapter",
    ),
    plant(
        "adapter: rslora is lora",
        "adapters.py",
        'use_rslora=kind == "rslora"',
        "use_rslora=False",
        REACH,
        "test_alpha_scales_the_adapter",
    ),
    plant(
        "adapter: no dropout",
        "adapters.py",
        "lora_dropout=dropout",
        "lora_dropout=0.0",
        REACH,
        "test_dropout_reaches_the_adapter",
    ),
    # optimiser
    plant(
        "optimiser: clip not passed on",
        "loop.py",
        "cfg.codebook_weights or None, cfg.max_grad_norm, counts",
        "cfg.codebook_weights or None, 1.0, counts",
        REACH,
        "test_clip_bounds_the_step",
    ),
    plant(
        "optimiser: nothing is clipped",
        "step.py",
        "clip_grads_with_norm_(params, max_norm, norm)",
        "clip_grads_with_norm_(params, float('inf'), norm)",
        REACH,
        "test_clip_bounds_the_step",
    ),
    plant(
        "optimiser: always clipped to 1",
        "step.py",
        "clip_grads_with_norm_(params, max_norm, norm)",
        "clip_grads_with_norm_(params, 1.0, norm)",
        REACH,
        "test_a_small_gradient_is_not_clipped",
    ),
    plant(
        "optimiser: no weight decay",
        "step.py",
        "torch.optim.AdamW(params, lr=learning_rate, weight_decay=weight_decay, fused=True)",
        "torch.optim.AdamW(params, lr=learning_rate, weight_decay=0.0, fused=True)",
        REACH,
        "test_weight_decay_shrinks_what_has_no_gradient",
    ),
    plant(
        "optimiser: gradients pile up",
        "step.py",
        "finally: _clear_gradients(model, optimizer, parallel)",
        "finally: pass",
        REACH,
        RESUMED,
    ),
    # schedule
    plant(
        "schedule: a step late",
        "loop.py",
        "learning_rate_at(run.step + 1, run.total,",
        "learning_rate_at(run.step, run.total,",
        REACH,
        "test_the_rate_of_every_step_is_its_schedule_s",
    ),
    plant(
        "schedule: not set",
        "step.py",
        'else: group["lr"] = learning_rate',
        "else: pass",
        REACH,
        "test_the_rate_of_every_step_is_its_schedule_s",
    ),
    plant(
        "schedule: no warm-up",
        "plan.py",
        "step/warmup if step <= warmup else",
        "1 if step <= warmup else",
        REACH,
        "test_the_rate_of_every_step_is_its_schedule_s",
    ),
    plant(
        "schedule: linear fall",
        "plan.py",
        "0.5*(1 + math.cos(math.pi*(step - warmup)/(total_steps - warmup + 1)))",
        "1 - (step - warmup)/(total_steps - warmup + 1)",
        REACH,
        "test_the_rate_of_every_step_is_its_schedule_s",
    ),
    # average
    plant(
        "average: decay lost",
        "checkpoint.py",
        "1 - min(self.decay, step/(step + 9))",
        "1 - step/(step + 9)",
        REACH,
        "test_the_average_s_decay_over_many_steps",
    ),
    plant(
        "average: no warm-up",
        "checkpoint.py",
        "1 - min(self.decay, step/(step + 9))",
        "1 - self.decay",
        REACH,
        "test_the_average_s_decay_over_many_steps",
    ),
    plant(
        "average: not updated",
        "loop.py",
        "if run.average: run.average.update(run.step)",
        "",
        REACH,
        "test_the_average_is_validated_and_written",
    ),
    plant(
        "average: not validated",
        "loop.py",
        "torch.no_grad(), run.average.applied() if run.average else nullcontext()",
        "torch.no_grad(), nullcontext()",
        REACH,
        "test_the_average_is_validated_and_written",
    ),
    plant(
        "average: stays in the model",
        "checkpoint.py",
        "finally: self.copy_to_model(own)",
        "finally: pass",
        REACH,
        "test_the_average_is_validated_and_written",
    ),
    # noise
    plant(
        "noise: none",
        "loop.py",
        "randomize_codes(run.data.train[i], run.cfg.input_noise, rng)",
        "run.data.train[i]",
        REACH,
        "test_noise_hides_its_share_of_the_codes_and_no_label",
    ),
    plant(
        "noise: half its share",
        "batch.py",
        "rng.random(e.delayed_codes.shape) < 2*share*rng.random()",
        "rng.random(e.delayed_codes.shape) < share*rng.random()",
        REACH,
        "test_noise_hides_its_share_of_the_codes_and_no_label",
    ),
    plant(
        "noise: the same in each epoch",
        "loop.py",
        "[run.cfg.seed, 3, epoch, batches[0][0]]",
        "[run.cfg.seed, 3, batches[0][0]]",
        REACH,
        "test_noise_hides_its_share_of_the_codes_and_no_label",
    ),
    # resume
    plant(
        "resume: random state lost",
        "loop.py",
        "set_random_state(rng[rank], run.accelerator.device)",
        "pass",
        "test_ranks",
        "test_a_resumed_rank_has_the_random_state_that_it_was_saved_with",
    ),
    plant(
        "resume: the main process's random state for all",
        "loop.py",
        "rng[rank]",
        "rng[0]",
        "test_ranks",
        "test_a_resumed_rank_has_the_random_state_that_it_was_saved_with",
    ),
    plant(
        "ranks: gradients averaged, not summed",
        "step.py",
        "ddp.register_comm_hook(None, _sum_bucket)",
        "pass",
        "test_ranks",
        "test_two_ranks_train_as_one_process_does",
    ),
    plant(
        "ranks: dropout depends on the rank",
        "step.py",
        'torch.manual_seed(batch["seed"])',
        "pass",
        "test_ranks",
        "test_two_ranks_train_as_one_process_does",
    ),
    plant(
        "ranks: every rank trains on the same batches",
        "loop.py",
        "for i, idle in equal_share(sizes, acc.num_processes, acc.process_index):\n        seed",
        "for i, idle in equal_share(sizes, acc.num_processes, 0):\n        seed",
        "test_ranks",
        "test_two_ranks_train_as_one_process_does",
    ),
    plant(
        "ranks: a resumed run takes its batches from the number of ranks",
        "loop.py",
        "if not cfg.resume_from_checkpoint: return batches",
        "return batches",
        "test_ranks",
        "test_a_run_goes_on_with_another_number_of_ranks",
    ),
    plant(
        "shards: gradients averaged, not summed",
        "shard.py",
        "module.set_gradient_divide_factor(1.0)",
        "pass",
        "test_ranks",
        "test_full_training_on_two_ranks_is_that_of_one_process",
    ),
    plant(
        "shards: the gradient norm of one rank",
        "step.py",
        "dist.all_reduce(squares)",
        "pass",
        "test_ranks",
        "test_full_training_on_two_ranks_is_that_of_one_process",
    ),
    plant(
        "shards: an idle batch counts",
        "step.py",
        'if batch.get("idle"):',
        "if False:",
        "test_ranks",
        "test_full_training_on_two_ranks_is_that_of_one_process",
    ),
    plant(
        "shards: every rank resumes with rank 0's moments",
        "checkpoint.py",
        'state | (_read_part(folder / f"trainer-{rank}.pt", divided) if rank else {})',
        "state",
        "test_ranks",
        "test_full_training_resumes_on_two_ranks_to_the_last_bit",
    ),
    plant(
        "shards: only the rank that overflows skips the step",
        "step.py",
        "dist.all_reduce(bad) if bad:",
        "if bad:",
        "test_ranks",
        "test_shards_of_three_ranks",
    ),
    plant(
        "resume: optimiser lost",
        "checkpoint.py",
        'optimizer.load_state_dict(state.pop("optimizer"))',
        'state.pop("optimizer")',
        REACH,
        RESUMED,
    ),
    plant(
        "resume: average lost",
        "loop.py",
        'zip(state.pop("average"), run.average.mean, strict=True)]',
        'zip(run.average.mean, state.pop("average"))]',
        REACH,
        RESUMED,
    ),
    plant(
        "resume: plan from the beginning",
        "loop.py",
        "plan_after(cfg, run.data, run.step, ",
        "plan_after(cfg, run.data, 0, ",
        REACH,
        RESUMED,
    ),
    plant(
        "resume: numpy's state lost",
        "checkpoint.py",
        "np.random.set_state((",
        "str((",
        REACH,
        "test_the_state_of_every_generator_comes_back",
    ),
    plant(
        "best: the last is written",
        "loop.py",
        "steps = filter(None, (run.hearing_step, run.best_step))",
        "steps = ()",
        REACH,
        WRITTEN,
    ),
    plant(
        "best: pruned",
        "checkpoint.py",
        '*(run / "checkpoints" / f"step-{step:06d}" for step in best)',
        "",
        REACH,
        WRITTEN,
    ),
    plant(
        "hearing: the lowest loss is written",
        "loop.py",
        "steps = filter(None, (run.hearing_step, run.best_step))",
        "steps = filter(None, (run.best_step,))",
        "test_hearing",
        "test_the_best_by_hearing_survives_and_is_written",
    ),
    plant(
        "hearing: pruned",
        "loop.py",
        "best = run.best_step, run.hearing_step\n",
        "best = run.best_step,",
        "test_hearing",
        "test_the_best_by_hearing_survives_and_is_written",
    ),
    plant(
        "hearing: the average is not spoken",
        "loop.py",
        "with run.average.applied() if run.average else nullcontext(): found = run.listen(run)",
        "found = run.listen(run)",
        "test_hearing",
        "test_the_average_is_spoken",
    ),
    plant(
        "hearing: random numbers are drawn",
        "loop.py",
        "set_random_state(state, device)\n    run.model.train()",
        "run.model.train()",
        "test_hearing",
        "test_training_does_not_notice_a_panel",
    ),
    plant(
        "hearing: what was heard later is kept on resuming",
        "panel.py",
        "int(step) <= run.step: continue",
        "int(step) <= run.step + 99: continue",
        "test_hearing",
        "test_a_resumed_run_chooses_the_same",
    ),
    plant(
        "hearing: a fall does not stop",
        "loop.py",
        'if run.hearing_falls: run.stop = run.stop or "hearing"',
        "pass",
        "test_hearing",
        "test_falling_hearing_stops_the_run_and_a_resumed_one_again",
    ),
    plant(
        "signal: not saved",
        "loop.py",
        "or last or run.stop: save_run(run)",
        "or last: save_run(run)",
        TRAINING,
        "test_signals_save_and_the_same_process_goes_on",
    ),
    # sampling
    plant(
        "sampling: temperature 1",
        "generate.py",
        "temperature=self.temperature,",
        "temperature=1.0,",
        REACH,
        "test_sampling_reaches_hf_s_warpers_as_given",
    ),
    plant(
        "sampling: top_k lost",
        "generate.py",
        "top_k=self.top_k",
        "top_k=50",
        REACH,
        "test_sampling_reaches_hf_s_warpers_as_given",
    ),
    plant(
        "sampling: top_p lost",
        "generate.py",
        "top_p=self.top_p)",
        "top_p=0.95)",
        REACH,
        "test_sampling_reaches_hf_s_warpers_as_given",
    ),
    plant(
        "sampling: no RAS",
        "generate.py",
        "ras_win_len=self.ras_win_len or None",
        "ras_win_len=None",
        REACH,
        "test_sampling_reaches_hf_s_warpers_as_given",
    ),
    plant(
        "sampling: seed lost",
        "generate.py",
        "torch.manual_seed(sampling.seed)",
        "pass",
        REACH,
        "test_the_seed_decides_and_the_caller_s_random_state_stays",
    ),
    plant(
        "sampling: it speaks with what was forced",
        "step.py",
        'states[:len(batch["targets"])]',
        'states[:len(batch["targets"])].roll(1, 0)',
        OBJECTIVE,
        FORCED,
    ),
    # codec
    plant(
        "codec: padding decoded into the clip",
        "codec.py",
        "m.conv1(places.clear(x))",
        "m.conv1(x)",
        "test_codec",
        "test_packing_keeps_the_waves",
    ),
    plant(
        "codec: a chunk begins without the one before",
        "codec.py",
        "x = torch.cat([before, x], 2)",
        "x = torch.cat([before * 0, x], 2)",
        "test_codec",
        "test_a_stream_of_codes_gives_the_wave_of_the_whole",
    ),
    # texts and sounds
    plant(
        "check: an unheard clip ends the run",
        "check.py",
        "except Exception as error:",
        "except OSError as error:",
        "test_textcheck",
        "test_a_clip_that_cannot_be_heard_is_reported_and_the_others_are_heard",
    ),
    plant(
        "check: the best clips first",
        "check.py",
        'clips.sort_values("cer", ascending=False',
        'clips.sort_values("cer", ascending=True',
        "test_textcheck",
        "test_swapped_texts_are_found_and_sorted_worst_first",
    ),
    plant(
        "speech: words that are off are kept",
        "speech.py",
        "takes.found[-1][0] == _FITS",
        "takes.found[-1][0][1] == 1",
        "test_saying",
        "test_what_is_not_heard_is_drawn_again_and_the_take_that_is_heard_is_kept",
    ),
    plant(
        "speech: length counts more than words",
        "speech.py",
        "return (off, factor), Speech(",
        "return (factor - 1, off + 1), Speech(",
        "test_saying",
        "test_words_count_more_than_length_and_both_are_said",
    ),
    plant(
        "long text: pieces are not checked",
        "longtext.py",
        "say_many(engine, asked, hows, check=check)",
        "say_many(engine, asked, hows, check=lambda *_: (0.0, ''))",
        "test_saying",
        "test_each_piece_is_heard_and_what_stays_wrong_is_reported",
    ),
    # verdicts
    plant(
        "verdict: plain percentiles of few clusters",
        "verdict.py",
        "tail = ndtr(-np.sqrt(k / (k - 1)) * stdtrit(k - 1, 0.975))",
        "tail = 0.025",
        "test_verdict",
        "test_few_clusters_widen_the_interval",
    ),
    plant(
        "verdict: not scored is zero",
        "verdict.py",
        "top = clips[score[0]].astype(float)",
        "top = clips[score[0]].astype(float).fillna(0)",
        "test_verdict",
        "test_what_was_not_scored_is_counted_and_never_zero",
    ),
    plant(
        "verdict: clips of a speaker are independent",
        "verdict.py",
        "label if by_speaker else per.sentence",
        "per.sentence",
        "test_verdict",
        "test_the_interval_knows_that_clips_of_a_speaker_are_alike",
    ),
    plant(
        "verdict: each seed counts",
        "verdict.py",
        "per = clips.groupby([\"sentence\", \"speaker\"])[columns].mean()",
        "per = clips.groupby([\"sentence\", \"speaker\"])[columns].sum()",
        "test_verdict",
        "test_seeds_are_averaged_so_that_a_sentence_counts_once",
    ),
    plant(
        "verdict: seeds are not paired",
        "verdict.py",
        "if (a.seed == \"\").all() or (b.seed == \"\").all():",
        "if True:",
        "test_verdict",
        "test_only_clips_of_the_same_sentence_and_seed_are_paired",
    ),
    plant(
        "verdict: the best evaluation is not the luckiest",
        "verdict.py",
        "1 - 0.025 / pairs",
        "1 - 0.025",
        "test_verdict",
        "test_a_run_without_change_is_seldom_stopped",
    ),
    # many texts, voices, typed texts, dials
    plant(
        "worklist: a changed text is kept",
        "say.py",
        "row_stamp(dict(text=prompt.text), files, decisive, marks)",
        "row_stamp(dict(), files, decisive, marks)",
        "test_worklist",
        "test_a_row_that_changed_is_spoken_again",
    ),
    plant(
        "worklist: a lost sound is kept",
        "worklist.py",
        "return abs(sf.info(sound).duration - float(line[\"seconds\"])) < 0.01",
        "return True",
        "test_worklist",
        "test_a_row_that_changed_is_spoken_again",
    ),
    plant(
        "worklist: an out may leave its folder",
        "worklist.py",
        "path = path_inside(folder, out)",
        "path = folder / out",
        "test_worklist",
        "test_bad_rows_are_set_aside",
    ),
    plant(
        "worklist: lines are written at the end only",
        "worklist.py",
        "file.flush()",
        "pass",
        "test_worklist",
        "test_each_line_is_on_disk_as_soon_as_its_sound_is",
    ),
    plant(
        "markup: any bracket is a tag",
        "markup.py",
        "rf\"</?(?:{_NAMES}|[a-z]+:[a-z-]+)",
        "rf\"</?(?:\\s?[a-z]+)",
        "test_wording",
        "test_what_is_no_markup_stays",
    ),
    plant(
        "pronounce: words inside words",
        "pronounce.py",
        "f\"{_LEFT}(?:{'|'.join(map(self._one, longest_first))}){_RIGHT}\"",
        "f\"(?:{'|'.join(map(self._one, longest_first))})\"",
        "test_wording",
        "test_whole_words_of_the_list_are_replaced",
    ),
    plant(
        "pronounce: the shortest entry first",
        "pronounce.py",
        "key=lambda written: (-len(written), written)",
        "key=lambda written: (len(written), written)",
        "test_wording",
        "test_whole_words_of_the_list_are_replaced",
    ),
    plant(
        "longtext: every turn in the first voice",
        "longtext.py",
        "prompt.references[piece.speaker : piece.speaker + 1]",
        "prompt.references[:1]",
        "test_saying",
        "test_a_long_dialogue_is_spoken_turn_by_turn",
    ),
    plant(
        "voices: the cache is not asked",
        "voices.py",
        "if cache and key in cache.shard_of:",
        "if False:",
        "test_voices",
        "test_a_voice_is_encoded_once",
    ),
    plant(
        "voices: any noise passes",
        "voices.py",
        "m[\"snr\"] < (least := SCENE_BOUNDS[\"noisy\"])",
        "m[\"snr\"] < (least := -99)",
        "test_voices",
        "test_a_fault_of_a_voice_is_found",
    ),
    plant(
        "dials: shown in every kernel",
        "dials.py",
        "return bool(getattr(kernel, \"_allow_stdin\", False))",
        "return bool(kernel)",
        "test_dials",
        "test_only_a_frontend_that_can_be_asked_is_live",
    ),
]


def check(m: Mutation) -> str:
    "Return an empty string if the tests of `m` catch the fault, else a description of the problem."
    text = (ROOT / "higgs_vi" / m.file).read_text(encoding="utf-8")
    if len(places := m.places(text)) != 1:
        return (
            f"{m.name}: the text {m.old!r} stands {len(places)} times in {m.file}; "
            "name the mutation by what stands there now"
        )
    ((start, end),) = places
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)
        shutil.copytree(
            ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(
            ROOT / "higgs_vi",
            copy / "higgs_vi",
            ignore=shutil.ignore_patterns("__pycache__", "assets"),
        )
        (copy / "higgs_vi/assets").symlink_to(ROOT / "higgs_vi/assets")
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / "higgs_vi" / m.file).write_text(text[:start] + m.new + text[end:], encoding="utf-8")
        said = run_tests(copy, [f"tests/{m.where}.py", "-k", " or ".join(m.tests)])
    if (
        re.search(r"^\d+ failed", said.splitlines()[-1] if said else "")
        and "/higgs_vi/__init__" in said
    ):
        return ""
    return f"{m.name}: {', '.join(m.tests)} did not fail: {said[-400:]}"


def run_tests(folder: Path, args: list[str]) -> str:
    """Run pytest in `folder` in a fork of this process, so that torch is imported only once.

    Returns its output, which begins with the path of the package under test.
    """
    read, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(read)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
        for name in [n for n in sys.modules if n.split(".")[0] == "tests"]:
            del sys.modules[name]
        os.environ |= dict(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
        import higgs_vi

        print(
            higgs_vi.__file__ if str(folder) in higgs_vi.__file__ else "another package", flush=True
        )
        os._exit(pytest.main(["-x", "--no-header", "--tb=line", "-p", "no:cacheprovider", *args]))
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as out:
        said = out.read().strip()
    os.waitpid(child, 0)
    return said


def main(parts: list[str]) -> int:
    """Check the mutations whose name contains one of `parts` (default: all).

    Returns the number of faults not caught.
    """
    import peft  # noqa: F401 - once, before the forks
    import torch

    if any(name.split(".")[0] == "higgs_vi" for name in sys.modules):
        raise SystemExit("run it in a process of its own: python -m tests.mutations")
    torch.set_num_threads(1)
    chosen = [m for m in MUTATIONS if not parts or any(p in m.name for p in parts)]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        wrong = []
        for m, said in zip(chosen, pool.map(check, chosen), strict=True):
            print(f"{'NOT CAUGHT ' + said if said else 'caught      ' + m.name}", flush=True)
            wrong += [said] * bool(said)
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} caught")
    return len(wrong)


if __name__ == "__main__": sys.exit(bool(main(sys.argv[1:])))
