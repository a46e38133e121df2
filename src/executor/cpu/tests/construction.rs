//! Options and models that an executor is not built from.

use super::*;

#[test]
fn options_out_of_range_are_refused() {
    let with = |change: fn(&mut CpuOptions)| {
        let mut options = options(1);
        change(&mut options);
        CpuExecutor::new(options, target(), None).err().map(|error| error.to_string())
    };
    assert_eq!(with(|_| ()), None);
    for (change, expected) in [
        ((|o| o.threads = 0) as fn(&mut CpuOptions), "threads is 0"),
        (|o| o.block_tokens = 24, "block_tokens is 24"),
        (|o| o.target_blocks = 0, "target_blocks is 0"),
        (|o| o.draft_tokens_max = 65, "draft_tokens_max is 65"),
    ] {
        let error = with(change).expect("refused");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let mut spec = small_spec(VOCAB);
    spec.hidden_size = 40;
    let narrow = random_model(&spec, 1, RandomOptions::default());
    assert!(matches!(CpuExecutor::new(options(1), narrow, None), Err(CpuError::Unsupported(_))));
    let other = random_model(&small_spec(VOCAB + 1), 1, RandomOptions::default());
    assert!(matches!(
        CpuExecutor::new(options(1), target(), Some(other.into())),
        Err(CpuError::Unsupported(_))
    ));
}
