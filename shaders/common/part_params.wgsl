    // `$W`: where its rows are, and their width; elements of a head that belong to it (0: all), from one head to the next, and the
    // first of them; where somebody reads it by itself, or NONE.
    $W_x: u32,
    $W_row: u32,
    $W_len: u32,
    $W_step: u32,
    $W_from: u32,
    $W_copy: u32,
