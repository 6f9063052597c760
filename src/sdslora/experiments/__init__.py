"""The experiments behind the command line: specification, data, training, evaluation.

One module a step: :mod:`.spec` and :mod:`.parsing` (what the user asked for), :mod:`.rows`,
:mod:`.procedural`, :mod:`.templates`, :mod:`.data` and :mod:`.encode` (rows to token ids),
:mod:`.models` and :mod:`.adapter` (what is trained), :mod:`.plan` and :mod:`.dry_run` (everything
that can be known beforehand), :mod:`.trainer`, :mod:`.checkpoints` and :mod:`.record` (a run and
its traces), :mod:`.measure` and :mod:`.scoring` (figures). The commands are :mod:`.train`,
:mod:`.evaluate`, :mod:`.export` and :mod:`.merge`; :mod:`.demo` strings them together.
"""
