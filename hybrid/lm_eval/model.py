"""`HybridLM`: a run or a Hugging Face folder as a model of lm-evaluation-harness.

The library makes requests of text and adds up what comes back; here text becomes ids. Contexts and
continuations are parted as the library parts them, and what is too long loses its beginning as in
the library's own `hf`. BOS stands first once, by the policy `data.bos`:

    auto       as the model was trained
    document   yes; a text that is cut from the left loses it, as with `hf`
    window     yes, also before what is left of a text that was cut, and before every later
               window of `loglikelihood_rolling`
    never      no; an empty context is EOS then

Control tokens that a text spells are taken as such, as transformers does: templates spell them.
"""

import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from hybrid.config import MOST_SEED, ConfigError
from hybrid.data import tokenizers
from hybrid.data.cache import check_ids
from hybrid.data.config import BOS_POLICIES
from hybrid.data.tasks import TASKS
from hybrid.evaluation.windows import rows_a_batch
from hybrid.generate import inference_of, session_of
from hybrid.generate.flags import base_settings, stop_ids
from hybrid.inference.config import InferenceConfig
from hybrid.lm_eval import generation
from hybrid.lm_eval.scoring import Request, Scorer
from hybrid.loading import api
from hybrid.loading.api import Model
from hybrid.pretrained import Settings

MAX_GEN_TOKS = 256
_log = logging.getLogger(__name__)
Scored = tuple[float, bool]


class HybridLM(TemplateLM):
    """A model that `lm_eval.simple_evaluate` takes, registered as `hybrid`."""

    def __init__(
        self,
        pretrained: str | pathlib.Path | Model = "",
        workdir: str | pathlib.Path = "",
        checkpoint: str | int = "latest",
        dtype: str = "float32",
        tokenizer: str = "",
        bos: str = "auto",
        batch_size: int | str = "auto",
        max_length: int = 0,
        max_gen_toks: int = MAX_GEN_TOKS,
        seed: int = 0,
        inference: InferenceConfig | None = None,
    ):
        """Reads the model.

        Args:
          pretrained: a Hugging Face folder, or a model that `hybrid` has loaded.
          workdir, checkpoint: a run in its place, at `latest`, `best` or a step.
          dtype: that a folder's model computes in.
          tokenizer: `data.tokenizer`; empty: the model's own.
          bos: `data.bos`, see above.
          batch_size: rows of a batch; `auto` or 0: by length.
          max_length: tokens that the model reads at most; 0: what a folder was made for, or what a
            run was trained on.
          max_gen_toks: new tokens where a task names no limit.
          seed: of draws; request i draws by `seed + i`.
          inference: format of the cache; None: the run's own, or the defaults.
        Raises: ConfigError for both or neither folder, and for what is wrong with it or a value.
        """
        super().__init__()
        if bool(pretrained) == bool(workdir):
            got = "both" if workdir else "neither"
            raise ConfigError("pretrained", "must be given, or workdir", got, "one of them")
        if isinstance(pretrained, Model):
            self._model = pretrained
        elif pretrained:
            self._model = api.from_pretrained(pretrained, dtype)
        else:
            self._model = api.load(workdir, checkpoint)
        origin = self._model.origin
        if (origin.run or {}).get("data", {}).get("source") in TASKS:
            problem = "was trained on a task, which has no text"
            raise ConfigError("workdir", problem, str(origin.path), "a run on text")
        self.batch_size = 0 if batch_size == "auto" else _whole("batch_size", batch_size, 0)
        self.max_gen_toks = _whole("max_gen_toks", max_gen_toks, 1)
        self._seed = _whole("seed", seed, 0, MOST_SEED)
        self._tokenizer = tokenizers.load(tokenizer or origin.tokenizer)
        if bos not in BOS_POLICIES:
            raise ConfigError("bos", "is no policy", bos, "one of " + ", ".join(BOS_POLICIES))
        self._bos = tokenizers.resolve_bos(origin.bos if bos == "auto" else bos, self._tokenizer)
        self._keeps_bos = bos == "window"
        base = base_settings(self._model)
        self._stop_ids = stop_ids(self._tokenizer, base)
        self.max_length = _max_length(self._model, max_length, base)
        self._inference = inference or inference_of(self._model)
        pad_id = self._tokenizer.pad_id
        self._pad_id = pad_id if pad_id < self._model.config.vocab_size else 0

    def get_model_info(self) -> dict[str, Any]:
        """What results name of the model: where it lies, its size, and how it was read."""
        params = jax.tree.leaves(self._model.params)
        return {
            "model_path": str(self._model.origin.path),
            "model_num_parameters": sum(leaf.size for leaf in params),
            "model_dtype": self._model.config.dtype,
            "bos": self._bos,
            "bos_in_every_window": self._keeps_bos,
            "max_length": self.max_length,
        }

    # --- Text to ids ---------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """What tells prepared requests of different tokenizers apart."""
        return self._tokenizer.fingerprint

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text.  Raises: ConfigError where the tokenizer has none."""
        if self._tokenizer.eos_id is None:
            raise ConfigError("tokenizer", "has neither BOS nor EOS, and a context is empty")
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where the model reads none."""
        bos_id = self._tokenizer.bos_id
        return self.eot_token_id if self._bos == "never" or bos_id is None else bos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text, behind BOS by the policy, or as `add_special_tokens` says.

        Raises: ConfigError for ids that the model has no row for.
        """
        ids = self._tokenizer.encode_parsed(string).tolist()
        check_ids(max(ids, default=0), self._model.config.vocab_size)
        bos_id = self._tokenizer.bos_id
        adds = self._bos != "never" if add_special_tokens is None else add_special_tokens
        return [bos_id, *ids] if adds and bos_id is not None and ids[:1] != [bos_id] else ids

    # --- Likelihoods ---------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Scored]:
        """(log-likelihood, is greedy) of each (key, context ids, continuation ids).

        What is longer than the model reads loses its beginning.
        Raises: ConfigError for a continuation that is too long by itself.
        """
        made = [self._request(context, continuation) for _, context, continuation in requests]
        self._warn_of_cuts(
            len(context) + len(continuation) - 1 > self.max_length
            for _, context, continuation in requests
        )
        with tqdm(total=len(made), disable=disable_tqdm, desc="loglikelihood") as bar:
            scorer = Scorer(self._model, self._inference, self._pad_id, self.batch_size, bar.update)
            answers = [(float(value), greedy) for value, greedy in scorer(made)]
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:  # of a window of a longer text
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        num = len(continuation)
        if num > self.max_length:
            problem = f"is less than a continuation has tokens ({num})"
            raise ConfigError("max_length", problem, self.max_length)
        return Request(self._cut([*context, *continuation], self.max_length + 1), num)

    def _cut(self, ids: list[int], most: int) -> np.ndarray:
        """int32: the last `most` ids; under `window` the first of them is BOS if any is gone."""
        kept = np.array(ids[-most:], np.int32)
        if len(ids) > most and self._keeps_bos:
            kept[0] = self.prefix_token_id
        return kept

    def _warn_of_cuts(self, are_cut: Iterable[bool]) -> None:
        """A line if texts that were longer than the model reads have lost their beginning."""
        num = sum(are_cut)
        if num:
            loses_bos = self._bos != "never" and not self._keeps_bos
            _log.warning(
                "%d requests are longer than max_length (%d): they lose their beginning%s",
                num,
                self.max_length,
                " and BOS (bos=window keeps it)" if loses_bos else "",
            )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text, every token predicted once, BOS never.

        Texts longer than the model reads are cut into the library's windows.
        """
        windows = [self._windows(request.args[0]) for request in requests]
        flat = [(None, *window) for each in windows for window in each]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm))
        totals = [sum(next(scores)[0] for _ in each) for each in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(context ids, continuation ids) of each window of a text."""
        ids, prefix = self.tok_encode(text, add_special_tokens=False), self.prefix_token_id
        ids = ids[1:] if ids[:1] == [prefix] else ids  # the text spells it
        room = self.max_length - self._keeps_bos
        found = utils.get_rolling_token_windows(ids, prefix, room, context_len=1)
        parted = [utils.make_disjoint_window(window) for window in found]
        bos = [prefix] if self._keeps_bos else []
        return [*parted[:1], *((bos + context, rest) for context, rest in parted[1:])]

    # --- Replies -------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop text, EOS or the limit.

        Raises: ConfigError under `generation_kwargs.` for what is not served.
        """
        groups: dict[generation.Settings, list[int]] = {}
        for index, request in enumerate(requests):
            settings = generation.settings_of(request.args[1], self.max_gen_toks)
            groups.setdefault(settings, []).append(index)
        for settings in groups:
            if settings.limit >= self.max_length:
                accepted = f"less than max_length ({self.max_length})"
                key = f"{generation.KEY}.max_gen_toks"
                raise ConfigError(key, "leaves no room for a context", settings.limit, accepted)
        found: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for settings, indices in groups.items():
                for batch in self._batches(requests, indices, settings.limit):
                    found |= self._replies(batch, settings)
                    bar.update(len(found) - bar.n)
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[index])
        return [found[index] for index in range(len(requests))]

    def _batches(
        self, requests: list[Instance], indices: list[int], limit: int
    ) -> Iterator[dict[int, np.ndarray]]:
        """The prompts int32 [t] by the index of their request, the longest first."""
        room = self.max_length - limit
        ids = {i: self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in indices}
        self._warn_of_cuts(len(each) > room for each in ids.values())
        ordered = sorted(indices, key=lambda i: -len(ids[i]))
        longest = min(room, len(ids[ordered[0]]))
        size = rows_a_batch(len(ordered), longest + limit, self.batch_size, 1)
        for first in range(0, len(ordered), size):
            yield {i: self._cut(ids[i], room) for i in ordered[first : first + size]}

    def _replies(
        self, prompts: dict[int, np.ndarray], settings: generation.Settings
    ) -> dict[int, str]:
        seeds = [(self._seed + index) % (MOST_SEED + 1) for index in prompts]
        texts = generation.replies(
            session_of(self._model, self._inference),
            self._tokenizer,
            list(prompts.values()),
            settings,
            seeds=np.array(seeds, np.uint32),
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
        )
        return dict(zip(prompts, texts, strict=True))


def _max_length(model: Model, given: int, base: Settings | None) -> int:
    """Tokens that the model reads at most.  Raises: ConfigError for more than it has rows for."""
    most = model.config.learned_positions
    if given:
        _whole("max_length", given, 2)
        if most and given > most:
            raise ConfigError("max_length", f"exceeds model.learned_positions ({most})", given)
        return given
    run = model.origin.run
    length = base.max_positions if base else (run or {})["training"]["context_length"]
    return min(length, most) if most else length


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value, a whole number in range.  Raises: ConfigError."""
    is_whole = type(value) is int and value >= least and (most is None or value <= most)
    if not is_whole:
        accepted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ConfigError(name, "must be a whole number", value, accepted)
    return value
