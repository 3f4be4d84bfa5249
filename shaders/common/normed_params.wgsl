    x: u32,
    cols: u32,
    // The norm's weights in `smalls`, or NONE: no norm; its bias, or NONE; 1: LayerNorm, which takes the mean off first.
    norm: u32,
    norm_bias: u32,
    centred: u32,
    eps: f32,
    // 1: some row of this launch is normed; 2: some of them by LayerNorm.
    norms: u32,
    // The normed row, where somebody reads it; or NONE.
    normed: u32,
    // The post-norm in front, or NONE, and the residual stream; the norm by itself and the sum, where somebody reads them, or
    // NONE.
    post_norm: u32,
    post_eps: f32,
    post_residual: u32,
    post_normed: u32,
    post_sum: u32,
