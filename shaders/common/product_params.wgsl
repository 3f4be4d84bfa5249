    rows: u32,
    // The first row in the tensor.
    first: u32,
    // In `smalls`, or NONE.
    bias: u32,
    scale: f32,
    // The product by itself, where somebody reads it; or NONE.
    product: u32,
    // Its bounds; 0: none.
    bound: f32,
    // Added to the product to give y; or NONE.
    residual: u32,
    y: u32,
    weight_row_words: u32,
    weight_blocks: u32,
