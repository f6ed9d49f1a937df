def vae_arguments(c, place):
    keep=('embed_dim','depth','num_heads','mlp_ratio','patch_size','patch_length','in_chans','z_chans','video_size','video_length')
    return {k:c[k] for k in keep}
