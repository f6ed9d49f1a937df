"""A node for ComfyUI that puts a policy on a loaded video model.

A folder in ComfyUI's `custom_nodes` with an `__init__.py` of one line makes it known there:
`from mccompile.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS`.
"""

from mccompile.comfyui.node import PolicyNode

NODE_CLASS_MAPPINGS = {"MCCompilePolicy": PolicyNode}
NODE_DISPLAY_NAME_MAPPINGS = {"MCCompilePolicy": "Cache policy (mccompile)"}
