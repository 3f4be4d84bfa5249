// Which cached positions a query sees: those up to its own, the last `window` of them where there is a window (0: none), and of
// its own chunk of positions where there are chunks (0: none).
fn visible(cached: u32, position: u32, window: u32, chunk: u32) -> bool {
    let near = window == 0u || position - cached < window;
    return cached <= position && near && (chunk == 0u || cached >= position / max(chunk, 1u) * chunk);
}

// Stands for a score that is not seen: finite, since WGSL may assume that no infinity occurs.
const MASKED: f32 = -3.0e38;

// Whether the mask at `mask` [T, S] lets token `row` see a position; NONE lets every one.
fn is_chosen(mask: u32, row: u32, cached: u32) -> bool {
    if (mask == NONE) {
        return true;
    }
    return arena[mask + row * now.cached + cached] != 0u;
}
