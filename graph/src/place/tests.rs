use super::*;

fn sizes(layers: &[u64]) -> Sizes {
    Sizes { layers: layers.to_vec(), first: 5, last: 7, working: 2 }
}

fn budget(device: &str, bytes: Option<u64>) -> Budget {
    let backend = device.split(':').next().unwrap_or_default().to_owned();
    Budget { device: device.to_owned(), backend, bytes }
}

fn layers(sizes: &Sizes, cuts: &[bool], devices: &[Budget]) -> Vec<usize> {
    let placement = by_layers(sizes, cuts, devices).unwrap();
    placement.check(cuts, &[]).unwrap();
    placement.layers
}

const FREE: [bool; 6] = [true; 6];

#[test]
fn the_first_device_is_filled_first() {
    let sizes = sizes(&[10; 6]);
    let of = |bytes| layers(&sizes, &FREE, &[budget("cuda:0", Some(bytes)), budget("cpu", None)]);
    assert_eq!(of(0), [1; 6]);
    assert_eq!(of(16), [1; 6], "the embedding and one layer are 15, and 2 are needed beside");
    assert_eq!(of(17), [0, 1, 1, 1, 1, 1]);
    assert_eq!(of(47), [0, 0, 0, 0, 1, 1]);
    assert_eq!(of(1000), [0; 6]);
}

#[test]
fn devices_of_one_backend_share() {
    let sizes = sizes(&[10; 6]);
    let two = [budget("cpu", None), budget("cpu", None)];
    assert_eq!(layers(&sizes, &FREE, &two), [0, 0, 0, 1, 1, 1]);
    let three = [budget("cuda:0", Some(42)), budget("cuda:1", Some(22)), budget("cpu", None)];
    assert_eq!(layers(&sizes, &FREE, &three), [0, 0, 0, 1, 1, 2]);
    // More devices than layers: some have none.
    let many = vec![budget("cpu", None); 8];
    assert_eq!(layers(&sizes, &FREE, &many), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn layers_that_share_a_cache_stay_together() {
    let sizes = sizes(&[10; 6]);
    let cuts = [true, true, true, false, false, true];
    let two = [budget("cpu", None), budget("cpu", None)];
    assert_eq!(layers(&sizes, &cuts, &two), [0, 0, 1, 1, 1, 1]);
    let json = r#"{"schema_version": 1, "devices": ["a", "b"], "layers": [0, 0, 0, 1, 1, 1]}"#;
    let split = Placement::from_json("p", json).unwrap();
    assert!(matches!(split.check(&cuts, &[]), Err(PlaceError::Cut(2, 3))));
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let sizes = sizes(&[10; 6]);
    for steps in 0..=10u64 {
        let bytes = 74 * steps / 10;
        let two = [budget("cuda:0", Some(30)), budget("cpu", Some(bytes))];
        match by_layers(&sizes, &FREE, &two) {
            Ok(placement) => assert_eq!(placement.layers, [0, 0, 1, 1, 1, 1], "{bytes}"),
            Err(PlaceError::TooSmall { wanted_bytes, device, first_layer: 2, last_layer: 5, .. }) => {
                assert!(bytes < wanted_bytes && device == "cpu", "{bytes}: {wanted_bytes}");
                let enough = [budget("cuda:0", Some(30)), budget("cpu", Some(wanted_bytes))];
                assert!(by_layers(&sizes, &FREE, &enough).is_ok());
                let less = [budget("cuda:0", Some(30)), budget("cpu", Some(wanted_bytes - 1))];
                assert!(by_layers(&sizes, &FREE, &less).is_err());
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(matches!(by_layers(&sizes, &FREE, &[]), Err(PlaceError::NoDevice)));
}

#[test]
fn json_goes_round_and_other_json_is_refused() {
    let placement = by_layers(&sizes(&[10; 6]), &FREE, &[budget("cpu", None), budget("cpu", None)]).unwrap();
    let text = serde_json::to_string(&placement).unwrap();
    assert_eq!(Placement::from_json("p.json", &text).unwrap(), placement);
    assert_eq!(placement.runs(), [(0, 0..3), (1, 3..6)]);
    for (text, why) in [
        ("{}", "missing field"),
        (r#"{"schema_version": 2, "devices": [], "layers": []}"#, "schema_version 2"),
        (r#"{"schema_version": 1, "devices": ["cpu"], "layers": [0, 1]}"#, "device 1 of 1"),
        (r#"{"schema_version": 1, "devices": ["cpu"], "layers": [0], "more": 1}"#, "unknown field"),
    ] {
        let error = Placement::from_json("p.json", text).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("p.json"), "{error}");
    }
    assert!(matches!(placement.check(&[true; 5], &[]), Err(PlaceError::Layers { found: 6, wanted: 5 })));
}
