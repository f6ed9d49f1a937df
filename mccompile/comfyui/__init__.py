"""A node for ComfyUI that puts a policy on a loaded video model.

docs/comfyui.md shows how ComfyUI gets to know it.
"""

from mccompile.comfyui.node import PolicyNode

NODE_CLASS_MAPPINGS = {"MCCompilePolicy": PolicyNode}
NODE_DISPLAY_NAME_MAPPINGS = {"MCCompilePolicy": "Cache policy (mccompile)"}
