//! The executor against a plain f64 forward pass, on every variant of a model.

use super::plain::PlainModel;
use super::*;
use crate::executor::cpu::each_set::on_each_set;
use crate::model::Dtype;

on_each_set!(logits_agree_with_an_f64_forward_on_every_variant);

fn logits_agree_with_an_f64_forward_on_every_variant(set: InstructionSet) {
    let plain = RandomOptions::default();
    let variants = [
        plain,
        RandomOptions { qkv_bias: true, ..plain },
        RandomOptions { head_norms: true, tied_head: false, dtype: Dtype::F16, ..plain },
        RandomOptions { qkv_bias: true, other_bias: true, dtype: Dtype::F32, ..plain },
    ];
    let tokens = text(3, 37);
    for (seed, variant) in variants.into_iter().enumerate() {
        let model = random_model(&small_spec(VOCAB), seed as u64, variant);
        let mut plain = PlainModel::new(&model);
        let steps = tokens.iter().map(|&token| plain.step(token).logits);
        let expected = steps.last().unwrap();
        let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        assert!(largest > 0.5, "logits that are all alike would show nothing");
        let mut executor = CpuExecutor::with_instruction_set(options(2), model.clone(), None, set).unwrap();
        let logits = executor.logits(ModelRole::Target, &input(&[5, 0, 9], &tokens, 0)).unwrap();
        for (ours, expected) in logits.iter().zip(&expected) {
            let error = (f64::from(*ours) - expected).abs();
            assert!(error < 1e-4 * largest.max(1.0), "{set:?} {variant:?}: {ours} for {expected}");
        }
    }
}
