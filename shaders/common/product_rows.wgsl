// Rows row0 … row0 + ROWS − 1 of a product of the staged row, within bounds, and what is added to it.
#include bounded

fn product_rows(lane: Lane, row0: u32, token: u32) {
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = row0 + i;
        if (row >= p.rows) {
            break;
        }
        let sums = weight_four_rows(lane, p.first + row, p.first + p.rows - 1u, p.cols);
        let out = row + lane.index;
        if (lane.index < 4u && out < p.rows) {
            let at = token * p.rows + out;
            var sum = sums[lane.index] * p.scale;
            if (p.bias != NONE) {
                sum += small(p.bias + out);
            }
            if (p.product != NONE) {
                store(p.product + at, sum);
            }
            sum = bounded(sum, p.bound);
            if (p.residual != NONE) {
                sum += load(p.residual + at);
            }
            store(p.y + at, sum);
        }
    }
}
