// Stages the row of a token; `keep` says that this workgroup writes down what somebody reads of it. In uniform control flow.
fn stage_row(lane: Lane, token: u32, keep: bool) {
    source = own_row();
    find_factors(lane, token);
    stage(lane, p.cols);
    if (keep) {
        keep_row(lane, token, true, true);
    }
}
