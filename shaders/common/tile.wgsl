// A tile of a matrix product in workgroup memory: TILE_ROWS rows of `$W` against TILE_TOKENS rows of activations, 32
// columns at a time; each of 256 lanes accumulates LANE_ROWS × LANE_TOKENS outputs. The caller says where each row is.
const LANES_ALONG_ROWS: u32 = TILE_ROWS / LANE_ROWS;

#if q8
var<workgroup> tile_w: array<vec4<u32>, TILE_ROWS * 2u>;
var<workgroup> tile_w_scale: array<vec2<f32>, TILE_ROWS * 2u>;
var<workgroup> tile_x: array<vec4<u32>, TILE_TOKENS * 2u>;
// The block's scale, then the sums of its two groups.
var<workgroup> tile_x_scale: array<vec2<f32>, TILE_TOKENS * 2u>;
#else
var<workgroup> tile_w: array<f32, TILE_ROWS * 32u>;
var<workgroup> tile_x: array<f32, TILE_TOKENS * 32u>;
#endif

// Row r of W begins at word `w_row`, the lane's token at word `x_row`; both are clamped by the caller, so that every
// lane reads inside the buffers and takes part in every barrier.
fn load_tile(lane: u32, k: u32, w_row: u32, x_row: u32, cols: u32) {
    // Lanes 0..TILE_ROWS·2 take a group of W each, the next TILE_TOKENS·2 a group of x each.
    let groups = (cols + 15u) / 16u;
    if (lane < TILE_ROWS * 2u) {
        let r = lane % TILE_ROWS;
        let half = lane / TILE_ROWS;
        let group = k / 16u + half;
#if q8
        tile_w[half * TILE_ROWS + r] = $W_quants(w_row, group);
        tile_w_scale[half * TILE_ROWS + r] = $W_scale(w_row, group);
#else
        var values = mat4x4<f32>();
        if (group < groups) {
            values = $W_values(w_row, group);
        }
        for (var i = 0u; i < 16u; i++) {
            tile_w[(half * 16u + i) * TILE_ROWS + r] = values[i >> 2u][i & 3u];
        }
#endif
    } else if (lane < TILE_ROWS * 2u + TILE_TOKENS * 2u) {
        let t = (lane - TILE_ROWS * 2u) % TILE_TOKENS;
        let half = (lane - TILE_ROWS * 2u) / TILE_TOKENS;
        let a = load_activations(x_row, k / 16u + half, cols);
#if q8
        tile_x[half * TILE_TOKENS + t] = a.q;
        tile_x_scale[half * TILE_TOKENS + t] = vec2<f32>(a.scale, a.sum);
#else
        for (var i = 0u; i < 16u; i++) {
            tile_x[(half * 16u + i) * TILE_TOKENS + t] = a.values[i >> 2u][i & 3u];
        }
#endif
    }
}

var<private> tile_sums: array<f32, LANE_ROWS * LANE_TOKENS>;

fn add_tile(lane: u32) {
    let r0 = lane % LANES_ALONG_ROWS;
    let t0 = lane / LANES_ALONG_ROWS;
#if q8
    for (var half = 0u; half < 2u; half++) {
        for (var j = 0u; j < LANE_TOKENS; j++) {
            let t = half * TILE_TOKENS + t0 * LANE_TOKENS + j;
            let x = tile_x[t];
            let x_scale = tile_x_scale[t];
            for (var i = 0u; i < LANE_ROWS; i++) {
                let r = half * TILE_ROWS + r0 + i * LANES_ALONG_ROWS;
                let w = tile_w[r];
                let w_scale = tile_w_scale[r];
                let product = dot_bytes(w.x, x.x) + dot_bytes(w.y, x.y) + dot_bytes(w.z, x.z) + dot_bytes(w.w, x.w);
                tile_sums[j * LANE_ROWS + i] += x_scale.x * (w_scale.x * f32(product) + w_scale.y * x_scale.y);
            }
        }
    }
#else
    for (var k = 0u; k < 32u; k++) {
        for (var j = 0u; j < LANE_TOKENS; j++) {
            let x = tile_x[k * TILE_TOKENS + t0 * LANE_TOKENS + j];
            for (var i = 0u; i < LANE_ROWS; i++) {
                tile_sums[j * LANE_ROWS + i] += tile_w[k * TILE_ROWS + r0 + i * LANES_ALONG_ROWS] * x;
            }
        }
    }
#endif
}

// The tile's sums over all columns; on return lane holds, at j · LANE_ROWS + i, the output of the tile's row
// `tile_row(lane, i)` and token `tile_token(lane, j)`.
fn multiply_tile(lane: u32, w_row: u32, x_row: u32, cols: u32) {
    for (var k = 0u; k < cols; k += 32u) {
        load_tile(lane, k, w_row, x_row, cols);
        workgroupBarrier();
        add_tile(lane);
        workgroupBarrier();
    }
}

// Which of the tile's rows (tokens) this lane loads.
fn loaded_row(lane: u32) -> u32 {
    return lane % TILE_ROWS;
}

fn loaded_token(lane: u32) -> u32 {
    return (lane - min(lane, TILE_ROWS * 2u)) % TILE_TOKENS;
}

fn tile_row(lane: u32, i: u32) -> u32 {
    return lane % LANES_ALONG_ROWS + i * LANES_ALONG_ROWS;
}

fn tile_token(lane: u32, j: u32) -> u32 {
    return lane / LANES_ALONG_ROWS * LANE_TOKENS + j;
}
