"""A SpeechBrain Brain whose model learns its widths.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import copy
import functools
import json
import math
import os

import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.nnet.adapters import AdaptedModel
from speechbrain.utils.checkpoints import DEFAULT_LOAD_HOOKS, DEFAULT_SAVE_HOOKS
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader, Dataset

from noisegate._private import leave_out_of_ddp, unwrapped
from noisegate.brain_model import BrainModel, find_gates
from noisegate.checkpoints import (
    Batches,
    Checksums,
    Seeds,
    append_epoch,
    set_aside_broken,
)
from noisegate.compact import compact, constructor, save_compact, vocabularies
from noisegate.gate import check_number
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from noisegate.probe import evaluating, map_tensors, tensors
from noisegate.rules.base import rule_of
from noisegate.rules.features import FEATURES

logger = get_logger(__name__)

_MISSED = 1.2  # times the budget, when the widths are frozen: worth a warning
_COLLAPSED = 0.5  # likewise
_NOT_CALLED = "on_stage_start must call super().on_stage_start(stage, epoch)"
_NO_LENGTH = "train_set has no length: loaders take looped_nominal_epoch, steps"
_REFUSED = {
    "jit": "cannot script gated layers; use --compile, or --jit with the "
    "compacted model",
    "data_parallel_backend": "runs copies of the layers, in which gates do "
    "not act; use torchrun (DistributedDataParallel)",
}
_REORDER_STEPS = 10  # optimizer steps between two rankings of the channels
_REORDERS = 30  # rankings at least, if there are as many steps


class GatedBrain(sb.Brain):
    """Trains weights and widths together, then evaluates the cut model.

    A recipe derives its Brain from this one as it would from ``sb.Brain``.
    What it has to do:

    * ``compute_objectives`` adds ``self.complexity_term(stage)`` to its loss,
      behind ``self.taught`` if there may be a teacher;
    * ``on_stage_start``, ``on_stage_end``, ``on_fit_batch_start`` and
      ``on_fit_batch_end``, where overridden, call ``super()`` first;
    * ``on_stage_end`` logs ``self.gate_stats()``, and names the criterion of
      the best checkpoint in its ``meta`` only if ``self.widths_are_final``.

    What this class does: gates have an optimizer of their own (own learning
    rate, no weight decay); schedule and dual variable are stepped
    after each optimizer step; channels are ranked every few steps; at the
    beginning of ``freeze_epoch`` widths are rounded to the budget and frozen;
    checkpoints hold all of this and the random state; ``evaluate`` runs on
    the compacted model.

    Required in hparams: ``gates`` (:class:`noisegate.gates.Gates`) and
    ``complexity_loss`` (:class:`noisegate.loss.ComplexityLoss`). With both as
    factories (``!name:``) all modules are gated together: ``fit`` finds the
    groups in what ``compute_forward`` computes, see
    :func:`noisegate.brain_model.find_gates`. Optional:
    ``output_folder``, where the history of the widths is written to
    ``gates.jsonl``, and ``teacher`` (:class:`noisegate.Teacher`).

    Arguments
    ---------
    *args : tuple
        Passed to ``sb.Brain``.
    gate_opt_class : callable
        Optimizer factory for the parameters of the gates. None is Adam with
        the learning rate ``lr`` of the gates.
    **kwargs : dict
        Passed to ``sb.Brain``.
    """

    def __init__(self, *args, gate_opt_class=None, **kwargs):
        super().__init__(*args, **kwargs)
        if not (gate_opt_class is None or callable(gate_opt_class)):
            raise ValueError(
                f"gate_opt_class must be callable, got {gate_opt_class!r}"
            )
        self.gate_opt_class = gate_opt_class
        if self.max_grad_norm <= 0:  # none: it would turn gradients around
            self.max_grad_norm = math.inf
        if self.optimizer_step_limit is not None:  # a text, if an option
            self.optimizer_step_limit = int(self.optimizer_step_limit)
        for key in ("gates", "complexity_loss"):
            if not hasattr(self.hparams, key):
                raise ValueError(f"GatedBrain needs the key '{key}' in hparams")
        # Factories if all modules are gated together
        self.gates = self.hparams.gates
        self.complexity_loss = self.hparams.complexity_loss
        self._prepared = isinstance(self.gates, Gates)
        if self._prepared != isinstance(self.complexity_loss, ComplexityLoss):
            raise ValueError(
                "gates and complexity_loss must both be objects (!new:), or "
                "both be factories (!name:), for all modules together; got "
                f"{self.gates!r:.60} and {self.complexity_loss!r:.60}"
            )
        for option, reason in _REFUSED.items():
            if getattr(self, option) and (self.gates or not self._prepared):
                raise ValueError(f"--{option} {reason}")
        kinds = [getattr(m, "norm_type", "") for m in self.modules.values()]
        if self._prepared and FEATURES in self.gates and "global" in kinds:
            raise ValueError(
                "mel bands are gated, but a normalization keeps statistics of "
                "each (norm_type global): take norm_type sentence, or leave "
                'the bands out, {"*": {}, features: False}'
            )
        teacher = getattr(self.hparams, "teacher", None)
        self.teacher = teacher if teacher and teacher.modules else None
        self.seeds = Seeds()
        self._epoch = self._steps_per_epoch = None
        self._losses = {}  # of the epoch
        self._unreached = set()  # gates without a gradient, as was warned
        self._term_added = self._taught = self._fed = self._stepped = False
        self._first_step, self._batch = 0, None
        self._compacted = None  # the cut model
        self._fixed = None  # the same, if it is what is trained
        self._cut = {}  # cut modules by those in whose place they are
        self._uncut, self._uncut_hparams = {}, {}  # what was there before

    def _prepare(self, dataset, loader_kwargs):
        """Gates all modules together, if the hparams say so; cuts them where
        widths are fixed from the beginning."""
        if not self._prepared:
            self.gates = find_gates(self, self.gates, dataset, loader_kwargs)
            self.complexity_loss = self.complexity_loss(self.gates)
            self._prepared = True
        if self.complexity_loss.fixed and self._fixed is None:
            self._cut_modules()
            self._fixed = self._compacted
            self._uncut, self._uncut_hparams = {}, {}  # nothing to go back to
            if self.checkpointer is not None:
                parts = self.checkpointer.recoverables
                cut = {
                    k: self._cut.get(part, part) for k, part in parts.items()
                }
                self.checkpointer.add_recoverables(cut)

    # ---- contract with the recipe ----------------------------------------

    @property
    def widths_are_final(self):
        """bool : whether the widths are frozen, that is the budget is met."""
        return self.gates.frozen

    def complexity_term(self, stage):
        """Returns what the complexity adds to the loss: in training only."""
        if stage != sb.Stage.TRAIN:
            return 0.0
        self._term_added = True
        return self.complexity_loss().to(self.device)

    def taught(self, loss, predictions, stage, lens=None):
        """Returns the task loss with what the teacher says, in training.

        ``predictions`` are what ``compute_forward`` has returned, ``lens``
        the relative lengths of outputs that are padded. Without a teacher
        (:class:`noisegate.Teacher`) in the hparams it is the loss alone.
        """
        if stage != sb.Stage.TRAIN or self.teacher is None:
            return loss
        self._taught = True
        return self.teacher.teach(loss, predictions, stage, lens)

    @torch.no_grad()
    def gate_stats(self):
        """Returns what to log of the gates (dict): "macs_per_second", and with
        gates "macs_ratio", "complexity_weight", and the width of each."""
        cost = self.gates.cost
        widths = self.gates.integer_widths()
        stats = {"macs_per_second": cost.macs_per_second(widths)}
        if not widths:
            return stats
        stats["macs_ratio"] = float(cost.ratio(self.gates.widths()))
        stats["complexity_weight"] = self.complexity_loss.weight
        for name, width in self.gates.widths().items():
            stats[f"width {name}"] = float(width)
        return stats

    # ---- hooks of sb.Brain -----------------------------------------------

    def fit(
        self,
        epoch_counter,
        train_set,
        valid_set=None,
        progressbar=None,
        train_loader_kwargs=None,
        valid_loader_kwargs=None,
    ):
        """See ``sb.Brain.fit``."""
        if train_set is not None:
            self._prepare(train_set, train_loader_kwargs)
        if self.test_only:
            return super().fit(epoch_counter, train_set)
        if not isinstance(train_set, (DataLoader, LoopedLoader)):
            train_set = self.make_dataloader(
                train_set, stage=sb.Stage.TRAIN, **(train_loader_kwargs or {})
            )
        try:
            self._steps_per_epoch = len(train_set)
        except TypeError as err:
            raise ValueError(_NO_LENGTH) from err
        every, n_batches = self.grad_accumulation_factor, self._steps_per_epoch
        check_number("grad_accumulation_factor", every, 1, n_batches, True)
        limit = getattr(epoch_counter, "limit", math.inf)
        if (n_steps := self.optimizer_step_limit) is not None:
            limit = min(limit, math.ceil(n_steps * every / n_batches))
        if self.gates and not (self.debug or 2 <= self.freeze_epoch <= limit):
            raise ValueError(
                f"freeze_epoch must be in [2, number_of_epochs = {limit}] (of "
                f"optimizer_step_limit, if fewer), got {self.freeze_epoch}: "
                "the widths would not become final"
            )
        loader = getattr(train_set, "loader", train_set)  # LoopedLoader has one
        if isinstance(data := getattr(loader, "dataset", 0), Dataset):
            data.__getitems__ = Batches(data, self.seeds)
        for name in ("sampler", "batch_sampler"):  # sb.Brain tells its own
            if hasattr(getattr(loader, name, None), "set_epoch"):
                self.train_sampler = getattr(loader, name)
        if self.debug:
            self._steps_per_epoch = min(len(train_set), self.debug_batches)
        options = {"valid_loader_kwargs": valid_loader_kwargs or {}}
        super().fit(epoch_counter, train_set, valid_set, progressbar, **options)

    @property
    def freeze_epoch(self):
        """int : the first epoch with final widths."""
        epoch = self.complexity_loss.freeze_epoch
        return min(epoch, self.debug_epochs) if self.debug else epoch

    def on_fit_start(self):
        """See ``sb.Brain.on_fit_start``."""
        if self.checkpointer is not None:
            for name in ("seeds", "complexity_loss"):
                self.checkpointer.add_recoverable(name, getattr(self, name))
            load = self.checkpointer.custom_load_hooks
            save = self.checkpointer.custom_save_hooks
            for name, part in self.checkpointer.recoverables.items():
                if isinstance(part, AdaptedModel):  # saves what is trained
                    load.setdefault(name, DEFAULT_LOAD_HOOKS[torch.nn.Module])
                    save.setdefault(name, DEFAULT_SAVE_HOOKS[torch.nn.Module])
        if self.distributed_launch:
            for module in self.modules.values():
                leave_out_of_ddp(module, self.gates.parameters())
        super().on_fit_start()
        of_gates = {id(parameter) for parameter in self.gates.parameters()}
        stepped_by = {
            name
            for name, optimizer in (self.optimizers_dict or {}).items()
            for group in optimizer.param_groups
            if not of_gates.isdisjoint(map(id, group["params"]))
        }
        if of_gates and stepped_by != {"gates"}:
            raise RuntimeError(
                "the gates need an optimizer of their own: an init_optimizers "
                "that sets optimizers_dict must call super().init_optimizers() "
                "behind that, which adds it and takes them out of the others "
                "(opt_class may be None)"
            )

    def init_optimizers(self):
        """See ``sb.Brain.init_optimizers``; gates get their own optimizer."""
        own = self.optimizers_dict or {}
        super().init_optimizers()
        self.optimizers_dict = {**own, **(self.optimizers_dict or {})}
        parameters = self.gates.parameters()
        if parameters:
            of_gates = {id(p) for p in parameters}
            for optimizer in self.optimizers_dict.values():
                for group in optimizer.param_groups:
                    group["params"] = [
                        p for p in group["params"] if id(p) not in of_gates
                    ]
            make = self.gate_opt_class or self._gate_optimizer
            self.gate_optimizer = make(parameters)
            self.gate_optimizer.register_step_post_hook(
                lambda *_: setattr(self, "_stepped", True)
            )
            self.optimizers_dict["gates"] = self.gate_optimizer
        if self.checkpointer is None:
            return
        add = self.checkpointer.add_recoverable
        if parameters:
            add("gate_optimizer", self.gate_optimizer)
        add("checksums", Checksums())
        # What follows next is the recovery
        run_on_main(set_aside_broken, args=[self.checkpointer])

    def _gate_optimizer(self, parameters):
        return torch.optim.Adam(
            {"params": list(gate.parameters()), "lr": gate.lr}
            for gate in self.gates.values()
        )

    def optimizers_step(self):
        """See ``sb.Brain.optimizers_step``; averages gradients of the gates
        over processes. The complexity reaches them past the modules that DDP
        wraps: it would take them for unused, or average them too early."""
        if self.distributed_launch and not self.gates.frozen:
            for parameter in self.gates.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()
        super().optimizers_step()

    def freeze_optimizers(self, optimizers):
        """See ``sb.Brain.freeze_optimizers``; final widths stay."""
        if not self.gates.frozen:
            return optimizers
        return {k: opt for k, opt in optimizers.items() if k != "gates"}

    def on_stage_start(self, stage, epoch=None):
        """See ``sb.Brain.on_stage_start``; freezes widths, cuts for tests."""
        if stage == sb.Stage.TEST:
            self._cut_modules()
        self.seeds.set(stage.name, epoch)
        if stage != sb.Stage.TRAIN:
            return
        self._epoch = epoch
        self.seeds.epoch.fill_(epoch)
        self._fed, self._stepped, self._first_step = False, False, self.step
        self.gates.watch()
        # A run resumed within an epoch has done this already
        if self.step > 0 or self.gates.frozen or not self.gates:
            return
        if epoch >= self.freeze_epoch:
            with torch.no_grad():
                before = float(self.gates.cost.ratio(self.gates.widths()))
            widths = self.complexity_loss.freeze()
            macs = self.gates.cost.macs_per_second(widths)
            budget = self.complexity_loss.budget
            if budget is not None and before > _MISSED * budget:
                logger.warning(
                    "The widths had not come down to the budget of "
                    f"{budget:.4g} but to {before:.4g}; the rest was cut at "
                    "once. More steps before freeze_epoch help, or faster "
                    "gates (gate_opt_class)"
                )
            elif budget is not None and before < _COLLAPSED * budget:
                logger.warning(
                    f"The widths had collapsed to {before:.4g}, far below the "
                    f"budget of {budget:.4g}, and were widened by one factor: "
                    "the gates are too fast (gate_opt_class)"
                )
            logger.info(f"Widths are final: {widths}, {macs} MACs per second")

    def on_fit_batch_start(self, batch, should_step):
        """See ``sb.Brain.on_fit_batch_start``."""
        self.seed_step()
        self._term_added = self._taught = False
        self._fed, self._batch = True, batch
        if self.teacher is not None:
            self.teacher.begin(self, batch)

    def seed_step(self):
        """Lets what is drawn be that of this step, from its beginning."""
        self.seeds.set("step", self._epoch, self.step)

    def check_loss_isfinite(self, loss):
        """See ``sb.Brain.check_loss_isfinite``; says where it comes from."""
        survives = self.skip_nonfinite_grads or self.scaler.is_enabled()
        if not (survives or torch.isfinite(loss)):
            raise ValueError(
                f"the loss is {loss.item()} in epoch {self._epoch}, step "
                f"{self.step}, of {getattr(self._batch, 'id', 'a batch')}: "
                f"{self._first_nonfinite()}. --skip_nonfinite_grads leaves "
                "such batches out"
            )
        super().check_loss_isfinite(loss)

    @torch.no_grad()
    def _first_nonfinite(self):
        """Runs the batch again to see where it is not finite first."""
        found = []

        def note(name, module, *values):
            for what, value in zip(("input", "output"), values):
                if not all(t.isfinite().all() for t in tensors(value)):
                    found.append(f"first in the {what} of '{name}'")

        with contextlib.ExitStack() as hooks:
            for name, module in self.modules.named_modules():
                hook = functools.partial(note, name)
                hooks.enter_context(module.register_forward_hook(hook))
            self.compute_forward(self._batch, sb.Stage.TRAIN)
        return found[0] if found else "the outputs of all modules are finite"

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """See ``sb.Brain.on_fit_batch_end``; steps the dual variable."""
        if not self._term_added and self.gates:
            raise RuntimeError(
                "compute_objectives must add self.complexity_term(stage) to "
                "its loss, otherwise nothing bounds the widths"
            )
        if self.teacher is not None and not self._taught:
            raise RuntimeError(
                "there is a teacher: compute_objectives must pass its loss "
                "through self.taught(loss, predictions, stage)"
            )
        if self._epoch is None:
            raise RuntimeError(_NOT_CALLED)
        unreached = set(self.gates.unreached()) - self._unreached
        if unreached:
            self._unreached |= unreached
            logger.warning(
                "No gradient of the task loss reached the gates of "
                f"{sorted(unreached)}, though their layers ran (under no_grad, "
                "or detached?): their widths follow the complexity alone"
            )
        if should_step and not self.gates.frozen:
            self.gates.clamp()
            if not math.isfinite(sum(g.known() for g in self.gates.values())):
                raise ValueError(
                    f"the gradient of the gates was not finite in epoch "
                    f"{self._epoch}, step {self.step}: "
                    "--skip_nonfinite_grads leaves such batches out"
                )
            n_steps = self._steps_per_epoch * (self.freeze_epoch - 1)
            every = min(_REORDER_STEPS, max(1, n_steps // _REORDERS))
            if (self.optimizer_step - 1) % every == 0:
                self.gates.reorder()
            done = self._epoch - 1 + self.step / self._steps_per_epoch
            self.complexity_loss.step(done / (self.freeze_epoch - 1))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """See ``sb.Brain.on_stage_end``; writes the history of the widths."""
        if stage == sb.Stage.TRAIN:
            self._check_epoch(epoch)
        self._losses[f"{stage.name.lower()} loss"] = float(stage_loss)
        folder = getattr(self.hparams, "output_folder", None)
        if stage == sb.Stage.VALID and folder and if_main_process():
            stats = {"epoch": epoch, **self._losses, **self.gate_stats()}
            append_epoch(f"{folder}/gates.jsonl", epoch, json.dumps(stats))

    def _check_epoch(self, epoch):
        """Raises RuntimeError if gates have not been trained in an epoch."""
        n_batches = self.step - self._first_step
        learns = self.gates.parameters() and not self.gates.frozen
        if learns and n_batches >= self.grad_accumulation_factor:
            if not (self._fed and self._stepped):
                raise RuntimeError(
                    "the gates have not been trained: a fit_batch must call "
                    "on_fit_batch_start, self.optimizers_step() and "
                    "on_fit_batch_end; a freeze_optimizers must keep 'gates'"
                )
        idle = self.gates.idle()
        if self._fed and idle and self._fixed is None:
            raise RuntimeError(
                f"the layers that read {idle} did not run in training epoch "
                f"{epoch}: nothing is learned of their widths. Leave them out "
                "(gates: layers) or call them in compute_forward"
            )

    def on_evaluate_start(self, max_key=None, min_key=None):
        """See ``sb.Brain.on_evaluate_start``; loads the best model.

        It is cut behind that, by ``on_stage_start``: a recipe may load an
        average of checkpoints, into the modules or into the hparams.
        """
        self.modules.update(self._uncut)
        vars(self.hparams).update(self._uncut_hparams)
        super().on_evaluate_start(max_key=max_key, min_key=min_key)

    def evaluate(self, test_set, *args, **kwargs):
        """See ``sb.Brain.evaluate``: of the cut model."""
        self._prepare(test_set, kwargs.get("test_loader_kwargs"))
        self._compacted = None
        loss = super().evaluate(test_set, *args, **kwargs)
        if self._compacted is None:
            raise RuntimeError(_NOT_CALLED)
        return loss

    def _cut_modules(self):
        """Puts cut models in the place of those with gates."""
        if not self.gates.frozen:
            raise RuntimeError(
                "the widths are not final: no checkpoint with frozen widths "
                "was found, so the budget is not met. Train until epoch "
                f"{self.freeze_epoch} at least"
            )
        model = self._fixed
        if model is None:
            model, features = compact(self.gates)
            if isinstance(model, BrainModel):
                self._cut = self.gates.model.replacements(model)
            else:
                self._cut = {self.gates.model: model}
                self._cut[self.gates.front_end] = features
        # Without the wrappers of DDP and compilation, which evaluation does
        # not need and which cannot be saved
        for key, module in list(self.modules.items()):
            self._uncut.setdefault(key, module)
            module = unwrapped(module)
            self.modules[key] = self._cut.get(module, module).to(self.device)
        for key, value in list(vars(self.hparams).items()):
            if isinstance(value, torch.nn.Module) and value in self._cut:
                self._uncut_hparams.setdefault(key, value)
                setattr(self.hparams, key, self._cut[value].to(self.device))
        if not {*self.modules.values()} & {*self._cut.values()}:
            raise RuntimeError(
                "the gated model is no entry of modules, so the compacted one "
                f"cannot take its place; modules: {list(self.modules)}"
            )
        self._compacted = model

    def save_compact(self, hparams_file, overrides=None, folder=None, **values):
        """Saves the model that was evaluated; see ``compact.save_compact``.

        Modules are built as in the entry ``modules`` of the recipe's YAML (with
        the overrides), then brought to their sizes and loaded. Label encoders
        and tokenizers are saved, too, and, if all modules are gated together,
        what ``compute_forward`` takes from the hparams. The folder,
        ``<output_folder>/compact`` if None, is not overwritten; values are
        further keys of the YAML that is written.
        """
        if self._compacted is None:
            raise RuntimeError("evaluate() cuts the model: call it first")
        if not if_main_process():
            return
        if folder is None:
            folder = os.path.join(self.hparams.output_folder, "compact")
        modules, originals, shapes = {}, {}, {}
        known = {**getattr(self._compacted, "beside", {}), **self.modules}
        calls = self._calls(known)
        for name in dict.fromkeys([*self.modules, *calls]):
            module = known[name]
            modules[name] = copy.deepcopy(module).cpu()
            if rule_of(module).in_front and FEATURES in self.gates:
                continue  # its constructor takes any number of bands
            if module is self._compacted and self.gates.input_shape is not None:
                shapes[name] = list(self.gates.input_shape)
                if FEATURES in self.gates:
                    shapes[name][-1] = self.gates.integer_widths()[FEATURES]
            originals[name] = constructor(hparams_file, name, overrides)
        modules.update(vocabularies({**vars(self.hparams), **vars(self)}))
        if shapes:  # what latency.py calls the model with
            seconds = self.gates.cost.seconds
            values = {"segment_s": seconds, "input_shape": shapes, **values}
        values = {"widths": self.gates.integer_widths(), **values}
        header = "Compacted model, see noisegate"
        save_compact(folder, modules, header, originals, calls, **values)

    def _calls(self, modules):
        """What modules are called with when the cut model gets the example."""
        calls, named = {}, {m: k for k, m in modules.items()}

        def note(module, args, kwargs):
            calls[named[module]] = copy.deepcopy((args, kwargs))

        inputs = [
            x.to(self.device) if torch.is_tensor(x) else x
            for x in map_tensors(torch.clone, self.gates.example)
        ]
        if FEATURES in self.gates:
            inputs[0] = self.open_features(inputs[0])
        with contextlib.ExitStack() as hooks, evaluating(self._compacted):
            for module in named:
                if not isinstance(module, Augmenter):
                    hook = module.register_forward_pre_hook
                    hooks.enter_context(hook(note, with_kwargs=True))
            self._compacted(*inputs)
        return calls

    def open_features(self, feats):
        """Returns the features (batch, time, open bands) that the present
        model reads, of those at full width: features computed once (a cache)
        fit the model while it is trained, the cut one reads the open bands."""
        gate = self.gates.get(FEATURES)
        if self._compacted is None and self.gates.respaced:
            raise ValueError(
                "features that were computed once do not follow mel bands "
                "that are spaced anew (respace): compute them in each step"
            )
        if self._compacted is None or gate is None:
            return feats
        return feats[..., gate.open_channels().to(feats.device)]
