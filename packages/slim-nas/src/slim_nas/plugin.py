"""The plugin that slim-core discovers. It implements no hook in this version."""
