//! Why not rejection sampling: exact output distributions of the standard ratio test
//! (Leviathan, Kalman, Matias 2023; Chen et al. 2023) under pruning, and of its tree variants.
//! Target (.5, .3, .2), draft (.6, .3, .1).

use super::fraction::{Fraction, fraction};
use crate::protocol::TokenId;
use crate::sampling::{SampledToken, walk_chain};

type Table = [Fraction; 3];

fn tenths(parts: [i128; 3]) -> Table {
    parts.map(|part| fraction(part, 10))
}

fn hundredths(parts: [i128; 3]) -> Table {
    parts.map(|part| fraction(part, 100))
}

fn target() -> Table {
    tenths([5, 3, 2])
}

fn draft() -> Table {
    tenths([6, 3, 1])
}

/// (p - q)⁺, normalised.
fn residual(p: Table, q: Table) -> Table {
    let positive: Table = std::array::from_fn(|v| (p[v] - q[v]).max(Fraction::ZERO));
    let mass = positive.into_iter().sum();
    positive.map(|part| part / mass)
}

/// Probability that the ratio test accepts `d`.
fn accepts(p: Table, q: Table, d: usize) -> Fraction {
    (p[d] / q[d]).min(Fraction::ONE)
}

/// Mixes: `weight` of a point at `d`.
fn point(weight: Fraction, d: usize) -> Table {
    std::array::from_fn(|v| if v == d { weight } else { Fraction::ZERO })
}

fn plus(a: Table, b: Table) -> Table {
    std::array::from_fn(|v| a[v] + b[v])
}

fn times(weight: Fraction, table: Table) -> Table {
    table.map(|part| weight * part)
}

/// Sums an output over the draft's value.
fn over_drafts(output: impl Fn(usize) -> Table) -> Table {
    (0..3).map(|d| times(draft()[d], output(d))).fold([Fraction::ZERO; 3], plus)
}

/// Ratio test of one draft: accept it, else draw from `otherwise`.
fn ratio(p: Table, q: Table, d: usize, otherwise: Table) -> Table {
    let accepted = accepts(p, q, d);
    plus(point(accepted, d), times(Fraction::ONE - accepted, otherwise))
}

/// The ratio test on one draft; a pruned draft is replaced by a plain sample.
fn pruned_ratio(prunes: impl Fn(usize) -> bool) -> Table {
    let (p, q) = (target(), draft());
    over_drafts(|d| if prunes(d) { p } else { ratio(p, q, d, residual(p, q)) })
}

#[test]
fn the_ratio_test_is_exact_when_every_draft_is_verified() {
    assert_eq!(pruned_ratio(|_| false), target());
}

#[test]
fn the_ratio_test_is_exact_when_pruning_does_not_look_at_the_value() {
    assert_eq!(pruned_ratio(|_| true), target());
}

#[test]
fn the_ratio_test_is_biased_when_unlikely_drafts_are_pruned() {
    assert_eq!(pruned_ratio(|d| draft()[d] < fraction(1, 5)), hundredths([55, 33, 12]));
    assert_eq!(pruned_ratio(|d| draft()[d] < fraction(1, 2)), hundredths([70, 12, 18]));
}

/// Independent samples x ~ p and d ~ q, verified by the walk.
#[test]
fn accepting_only_the_targets_own_sample_is_exact_under_any_pruning() {
    for kept in 0..8usize {
        let emitted = over_drafts(|d| {
            let drafts = [d as TokenId];
            let drafts = if kept >> d & 1 == 1 { &drafts[..] } else { &[] };
            let emit = |x: usize| {
                let own = SampledToken { token: x as TokenId, finite: true };
                point(target()[x], walk_chain(drafts, |_| own).tokens[0] as usize)
            };
            (0..3).map(emit).fold([Fraction::ZERO; 3], plus)
        });
        assert_eq!(emitted, target());
    }
}

#[test]
fn sibling_drafts_need_the_residual_to_be_updated_between_them() {
    let (p, q) = (target(), draft());
    let rest = residual(p, q);
    let stale = over_drafts(|a| ratio(p, q, a, over_drafts(|b| ratio(p, q, b, rest))));
    assert_eq!(stale, hundredths([55, 33, 12]));
    let updated = over_drafts(|a| ratio(p, q, a, over_drafts(|b| ratio(rest, q, b, residual(rest, q)))));
    assert_eq!(updated, target());
}

#[test]
fn the_drafts_two_best_as_siblings_are_biased_under_the_ratio_test() {
    let (p, q) = (target(), draft());
    let output = ratio(p, q, 0, ratio(p, q, 1, residual(p, q)));
    assert_eq!(output, [fraction(5, 6), fraction(1, 6), Fraction::ZERO]);
}
