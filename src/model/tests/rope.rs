//! Frequencies against numbers computed by hand, and what config.json may say about them.

use serde_json::{Value as Json, json};

use super::Directory;
use crate::model::{Rope, RopeScaling};

fn rope(change: impl FnOnce(&mut Directory)) -> Rope {
    let mut made = Directory::new("llama");
    change(&mut made);
    made.load().expect("it loads").loaded.spec.rope
}

fn refused(key: &str, value: Json) -> String {
    let mut made = Directory::new("llama");
    made.set(key, value);
    made.error()
}

fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} is not {expected}");
    }
}

#[test]
fn plain_frequencies_fall_by_powers_of_theta() {
    let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Default };
    near(&rope.inverse_frequencies(8), &[1.0, 0.1, 0.01, 0.001]);
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
    near(&rope.inverse_frequencies(8), &[0.25, 0.025, 0.0025, 0.00025]);
}

/// Llama 3.1's parameters with a theta that makes round numbers. Wavelengths are 2π/f:
/// 6.28, 628, 62 832 and 6 283 185 tokens. The bounds are 8192/4 = 2048 and 8192/1 = 8192:
/// the first two are kept, the last two divided by 8.
#[test]
fn llama3_scaling_keeps_high_frequencies_and_divides_low_ones() {
    let scaling = llama31();
    let rope = Rope { theta: 1e8, scaling };
    near(&rope.inverse_frequencies(8), &[1.0, 0.01, 1e-4 / 8.0, 1e-6 / 8.0]);
}

/// Between the bounds: frequency 0.0015 has wavelength 4188.7902…, and 8192/4188.7902… is
/// 1.9556959…; the ramp is (1.9556959… - 1)/3 = 0.3185653….
#[test]
fn llama3_scaling_ramps_between_the_bounds() {
    // Two pairs: frequencies 1 and theta^(-1/2).
    let rope = Rope { theta: 1.0 / (0.0015 * 0.0015), scaling: llama31() };
    near(&rope.inverse_frequencies(4), &[1.0, 6.056_169_740_620_294e-4]);
}

/// Llama 3.2 1B's parameters; what transformers 5.24 computes for them in fp32.
#[test]
fn llama3_scaling_agrees_with_transformers() {
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192.0,
    };
    let found = Rope { theta: 500_000.0, scaling }.inverse_frequencies(64);
    assert_eq!(found.len(), 32);
    for (pair, expected) in [
        (0, 1.0),
        (8, 0.037_606_030_702_590_94),
        (14, 0.003_211_446_106_433_868_4),
        (15, 0.001_290_548_010_729_253_3),
        (16, 4.295_567_050_576_21e-4),
        (17, 9.708_286_233_944_818e-5),
        (18, 1.946_163_865_795_824_7e-5),
        (31, 9.418_306_490_260_875e-8),
    ] {
        let error = found[pair] / expected - 1.0;
        assert!(error.abs() < 1e-6, "pair {pair}: {} is not {expected}", found[pair]);
    }
}

fn llama31() -> RopeScaling {
    RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 }
}

fn llama31_json() -> Json {
    json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192})
}

#[test]
fn scaling_is_read_from_either_key_and_under_either_name() {
    for key in ["rope_scaling", "rope_parameters"] {
        let found = rope(|made| _ = made.set(key, llama31_json()));
        assert_eq!(found, Rope { theta: 500.0, scaling: llama31() });
    }
    let found = rope(|made| _ = made.set("rope_scaling", json!({"type": "linear", "factor": 2.0})));
    assert_eq!(found.scaling, RopeScaling::Linear { factor: 2.0 });
    let found = rope(|made| _ = made.set("rope_scaling", json!(null)));
    assert_eq!(found.scaling, RopeScaling::Default);
}

#[test]
fn theta_is_read_from_either_key_and_has_a_default() {
    let parameters = json!({"rope_type": "default", "rope_theta": 1e6});
    let found =
        rope(|made| _ = made.set("rope_theta", json!(null)).set("rope_parameters", parameters.clone()));
    assert_eq!(found.theta, 1e6);
    let found = rope(|made| _ = made.set("rope_theta", json!(null)));
    assert_eq!(found.theta, 10_000.0);
    let error = refused("rope_parameters", parameters);
    assert!(error.contains("`rope_parameters.rope_theta` is 1000000.0: differs"), "{error}");
}

#[test]
fn unimplemented_settings_are_rejected_by_key_and_value() {
    for (key, value, expected) in [
        ("rope_scaling", json!({"type": "dynamic", "factor": 2.0}), "`rope_scaling.type` is \"dynamic\""),
        ("rope_scaling", json!({"rope_type": "yarn"}), "`rope_scaling.rope_type` is \"yarn\""),
        ("rope_parameters", json!({"rope_type": "longrope"}), "`rope_parameters.rope_type` is \"longrope\""),
        ("rope_scaling", json!({"type": "linear"}), "has no `rope_scaling.factor`"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 0}),
            "`rope_scaling.factor` is 0: expected a number above 0",
        ),
        ("rope_scaling", json!({"type": 3}), "`rope_scaling.type` is 3: expected a string"),
        ("rope_scaling", json!("linear"), "`rope_scaling` is \"linear\": expected an object"),
        ("rope_parameters", json!({"full_attention": {"rope_type": "default"}}), "per kind of layer"),
        ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5"),
        ("rope_theta", json!(-1.0), "`rope_theta` is -1.0"),
    ] {
        let error = refused(key, value);
        assert!(error.contains("config.json") && error.contains(expected), "{error}");
    }
    let mut upside_down = llama31_json();
    upside_down["high_freq_factor"] = json!(1.0);
    let error = refused("rope_scaling", upside_down);
    assert!(error.contains("must be above `low_freq_factor` 1"), "{error}");
}

#[test]
fn two_scalings_that_disagree_are_refused() {
    let mut made = Directory::new("llama");
    made.set("rope_scaling", json!({"type": "linear", "factor": 2.0}));
    made.set("rope_parameters", json!({"rope_type": "default"}));
    let error = made.error();
    assert!(error.contains("differs from `rope_parameters`"), "{error}");
    made.set("rope_parameters", json!({"rope_type": "linear", "factor": 2.0}));
    made.load().expect("they agree");
}
