//! Exactness of sampling, by χ² against the distribution's definition, and edge cases.

use super::*;

/// Draws of one χ² test.
const DRAWS: u32 = 60_000;
/// Normal quantile of 1e-4, one-sided.
const Z_CRITICAL: f64 = 3.719;

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

/// The processed distribution by its definition: double precision, everything sorted.
fn exact(logits: &[f32], params: &SamplingParams, history: &TokenHistory) -> Vec<f64> {
    let mut l: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    for (token, seen) in history.occurrences() {
        let l = &mut l[token as usize];
        let r = f64::from(params.repetition_penalty);
        *l = if *l < 0.0 { *l * r } else { *l / r };
        if seen.output > 0 {
            *l -= f64::from(params.presence_penalty)
                + f64::from(params.frequency_penalty) * f64::from(seen.output);
        }
    }
    for &(token, bias) in &params.logit_bias {
        l[token as usize] += f64::from(bias);
    }
    let max = l.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let mut p: Vec<f64> = l.iter().map(|l| ((l - max) / f64::from(params.temperature)).exp()).collect();
    let mut ids: Vec<usize> = (0..p.len()).collect();
    ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    let k = if params.top_k == 0 { ids.len() } else { ids.len().min(params.top_k as usize) };
    let mass_of_k: f64 = ids[..k].iter().map(|&id| p[id]).sum();
    let mut before = 0.0;
    for (rank, &id) in ids.iter().enumerate() {
        let enough = rank > 0 && params.top_p < 1.0 && before >= f64::from(params.top_p) * mass_of_k;
        before += p[id];
        if rank >= k || enough || p[id] < f64::from(params.min_p) {
            p[id] = 0.0;
        }
    }
    let mass: f64 = p.iter().sum();
    p.iter().map(|p| p / mass).collect()
}

/// χ² of `sample` over many seeds and positions; a token without mass must never occur.
fn check_distribution(logits: &[f32], params: &SamplingParams, history: &TokenHistory) {
    let expected = exact(logits, params, history);
    let mut counts = vec![0u32; logits.len()];
    let mut sampler = Sampler::new();
    for i in 0..DRAWS {
        let params = SamplingParams { seed: u64::from(i / 250) << 20, ..params.clone() };
        let sampled = sampler.sample(logits, &params, i % 250, history);
        assert!(sampled.finite);
        counts[sampled.token as usize] += 1;
    }
    // Rare tokens share one bin.
    let (mut chi2, mut bins, mut rare) = (0.0, 0, (0.0, 0.0));
    let mut add = |n: f64, e: f64| {
        chi2 += (n - e) * (n - e) / e;
        bins += 1;
    };
    for (&n, &p) in counts.iter().zip(&expected) {
        let e = p * f64::from(DRAWS);
        assert!(p > 0.0 || n == 0, "a token that was filtered out came {n} times");
        if e >= 8.0 {
            add(f64::from(n), e);
        } else {
            rare = (rare.0 + f64::from(n), rare.1 + e);
        }
    }
    if rare.1 >= 8.0 {
        add(rare.0, rare.1);
    }
    // Wilson and Hilferty's approximation of the quantile.
    let freedom = f64::from(bins - 1).max(1.0);
    let spread = 2.0 / (9.0 * freedom);
    let critical = freedom * (1.0 - spread + Z_CRITICAL * spread.sqrt()).powi(3);
    assert!(chi2 < critical, "χ² = {chi2:.1} of {bins} bins, critical {critical:.1}: {params:?}");
}

fn twelve() -> Vec<f32> {
    vec![2.0, -1.0, 0.5, 3.1, 1.7, -4.0, 0.5, 2.9, -0.3, 1.1, 0.0, 2.2]
}

#[test]
fn samples_follow_the_tempered_distribution() {
    for temperature in [0.3, 1.0, 1.8] {
        check_distribution(&twelve(), &SamplingParams { temperature, ..warm() }, &TokenHistory::none());
    }
}

#[test]
fn samples_follow_a_distribution_of_several_tiles() {
    let logits: Vec<f32> = (0..330u32).map(|i| ((i * 37) % 101) as f32 * 0.03).collect();
    check_distribution(&logits, &warm(), &TokenHistory::none());
}

#[test]
fn samples_follow_the_distribution_after_each_filter() {
    for params in [
        SamplingParams { top_k: 1, ..warm() },
        SamplingParams { top_k: 5, ..warm() },
        SamplingParams { top_p: 0.8, ..warm() },
        SamplingParams { min_p: 0.2, ..warm() },
        SamplingParams { min_p: 0.03, ..warm() },
    ] {
        check_distribution(&twelve(), &params, &TokenHistory::none());
    }
}

#[test]
fn samples_follow_the_distribution_after_penalties_and_bias() {
    let history = TokenHistory::new(3, vec![3, 5, 0, 7, 7, 3, 1, 11]);
    for params in [
        SamplingParams { repetition_penalty: 1.7, ..warm() },
        SamplingParams { presence_penalty: 0.9, ..warm() },
        SamplingParams { frequency_penalty: 0.6, ..warm() },
        SamplingParams { logit_bias: vec![(3, -100.0), (5, 6.0)], ..warm() },
    ] {
        check_distribution(&twelve(), &params, &history);
    }
}

#[test]
fn samples_follow_the_distribution_under_everything_at_once() {
    let history = TokenHistory::new(3, vec![3, 5, 0, 7, 7, 3, 1, 11]);
    let all = SamplingParams {
        temperature: 0.7,
        top_k: 8,
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(4, 0.5)],
        ..warm()
    };
    check_distribution(&twelve(), &all, &history);
    check_distribution(&twelve(), &SamplingParams { top_k: 0, ..all.clone() }, &history);
    check_distribution(&twelve(), &SamplingParams { temperature: 2.0, top_p: 1.0, ..all }, &history);
}

#[test]
fn temperature_zero_takes_the_largest_adjusted_logit_and_ignores_filters_and_noise() {
    let mut sampler = Sampler::new();
    let mut greedy = |logits: &[f32], params: &SamplingParams, history: &TokenHistory| {
        let samples: Vec<_> =
            (0..50).map(|position| sampler.sample(logits, params, position, history)).collect();
        assert!(samples.iter().all(|s| *s == samples[0] && s.finite));
        samples[0].token
    };
    let none = TokenHistory::none();
    assert_eq!(greedy(&twelve(), &SamplingParams::greedy(), &none), 3);
    assert_eq!(greedy(&[1.0, 5.0, 5.0, 5.0], &SamplingParams::greedy(), &none), 1, "the lowest id on a tie");
    let filtered = SamplingParams { top_k: 1, top_p: 0.1, min_p: 0.9, ..SamplingParams::greedy() };
    assert_eq!(greedy(&[1.0, 5.0, 5.0], &filtered, &none), 1);
    let penalised = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::greedy() };
    assert_eq!(greedy(&twelve(), &penalised, &TokenHistory::new(1, vec![3])), 7);
    let negative = SamplingParams { temperature: -1.0, ..SamplingParams::greedy() };
    assert_eq!(greedy(&twelve(), &negative, &none), 3);
}

#[test]
fn invalid_logits_are_reported_as_not_finite() {
    let mut sampler = Sampler::new();
    let none = TokenHistory::none();
    let cases: [&[f32]; 5] =
        [&[], &[1.0, f32::NAN], &[f32::INFINITY, 1.0], &[1.0, f32::NEG_INFINITY], &[f32::NAN; 100]];
    for params in [SamplingParams::greedy(), warm(), SamplingParams { top_p: 0.5, ..warm() }] {
        for logits in cases {
            assert!(!sampler.sample(logits, &params, 0, &none).finite, "{logits:?}");
            assert!(!sampler.propose(logits, &params, 0, &none).finite, "{logits:?}");
        }
        let adjusted = SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..params };
        assert!(!sampler.sample(&[1.0, 2.0], &adjusted, 0, &none).finite, "bias to infinity");
    }
}

#[test]
fn extreme_parameters_have_a_defined_meaning() {
    let mut sampler = Sampler::new();
    let none = TokenHistory::none();
    let logits = [1.0f32, 1.01, 0.0, 1.005];
    for params in [
        SamplingParams { temperature: 1e-6, ..warm() },
        SamplingParams { temperature: f32::MIN_POSITIVE, ..warm() },
        SamplingParams { top_p: 1e-9, ..warm() },
        SamplingParams { top_p: 0.0, ..warm() },
        SamplingParams { top_p: -3.0, ..warm() },
        SamplingParams { min_p: 1.0, ..warm() },
        SamplingParams { min_p: 7.0, ..warm() },
        SamplingParams { top_k: 1, ..warm() },
    ] {
        for position in 0..200 {
            let sampled = sampler.sample(&logits, &params, position, &none);
            assert_eq!(sampled, SampledToken { token: 1, finite: true }, "{params:?}");
        }
    }
    for off in [
        SamplingParams { top_k: u32::MAX, ..warm() },
        SamplingParams { top_p: 1.0, ..warm() },
        SamplingParams { min_p: f32::MIN_POSITIVE / 2.0, ..warm() },
    ] {
        for position in 0..200 {
            let plain = sampler.sample(&logits, &warm(), position, &none);
            assert_eq!(sampler.sample(&logits, &off, position, &none), plain, "{off:?}");
        }
    }
    let hot = SamplingParams { temperature: f32::INFINITY, ..warm() };
    assert!(sampler.sample(&logits, &hot, 0, &none).finite);
    assert_eq!(sampler.sample(&[-7.5], &warm(), 0, &none), SampledToken { token: 0, finite: true });
}

#[test]
fn a_sample_depends_on_seed_and_position_only() {
    let none = TokenHistory::none();
    let logits: Vec<f32> = (0..200).map(|i| (i % 17) as f32 * 0.2).collect();
    let of = |sampler: &mut Sampler, seed, position| {
        sampler.sample(&logits, &SamplingParams { seed, ..warm() }, position, &none).token
    };
    let mut used = Sampler::new();
    let first: Vec<_> = (0..100).map(|position| of(&mut used, 1, position)).collect();
    let again: Vec<_> = (0..100).rev().map(|position| of(&mut Sampler::new(), 1, position)).collect();
    assert!(first.iter().eq(again.iter().rev()));
    let reseeded: Vec<_> = (0..100).map(|position| of(&mut used, 1 << 40, position)).collect();
    assert_ne!(first, reseeded);
}

#[test]
fn a_proposal_is_the_sample_with_its_exact_probability_and_margin() {
    let history = TokenHistory::new(2, vec![3, 0, 7, 7]);
    let long: Vec<f32> = (0..900u32).map(|i| ((i * 7919) % 1009) as f32 * 0.012).collect();
    let mut sampler = Sampler::new();
    for logits in [twelve(), long, vec![0.5, 0.5]] {
        for params in [
            warm(),
            SamplingParams { temperature: 0.5, top_k: 4, ..warm() },
            SamplingParams { temperature: 1.4, top_p: 0.7, ..warm() },
            SamplingParams { min_p: 0.3, logit_bias: vec![(1, 2.0)], ..warm() },
        ] {
            let history = if logits.len() > 7 { history.clone() } else { TokenHistory::none() };
            let expected = exact(&logits, &params, &history);
            let mut sorted = expected.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for position in 0..50 {
                let proposal = sampler.propose(&logits, &params, position, &history);
                assert!(proposal.finite);
                assert_eq!(proposal.token, sampler.sample(&logits, &params, position, &history).token);
                let error = f64::from(proposal.probability) - expected[proposal.token as usize];
                assert!(error.abs() < 2e-6, "{params:?}");
                assert!((f64::from(proposal.margin) - (sorted[0] - sorted[1])).abs() < 2e-6, "{params:?}");
            }
        }
    }
}

#[test]
fn a_greedy_proposal_has_the_plain_softmax_and_the_second_largest_logit() {
    let mut sampler = Sampler::new();
    let proposal = sampler.propose(&twelve(), &SamplingParams::greedy(), 5, &TokenHistory::none());
    let expected = exact(&twelve(), &warm(), &TokenHistory::none());
    assert_eq!((proposal.token, proposal.runner_up), (3, 7));
    assert!((f64::from(proposal.probability) - expected[3]).abs() < 1e-6);
    assert!((f64::from(proposal.margin) - (expected[3] - expected[7])).abs() < 1e-6);
}

/// Under the same noise, the runner-up is what is sampled once the first token is banned.
#[test]
fn the_runner_up_is_the_sample_without_the_first() {
    let mut sampler = Sampler::new();
    let none = TokenHistory::none();
    for position in 0..300 {
        let proposal = sampler.propose(&twelve(), &warm(), position, &none);
        let banned = SamplingParams { logit_bias: vec![(proposal.token, -1e4)], ..warm() };
        assert_eq!(proposal.runner_up, sampler.sample(&twelve(), &banned, position, &none).token);
    }
}

#[test]
fn a_token_kept_alone_is_certain() {
    let mut sampler = Sampler::new();
    for logits in [vec![1.0], twelve()] {
        let only = SamplingParams { top_k: 1, ..warm() };
        let proposal = sampler.propose(&logits, &only, 0, &TokenHistory::none());
        assert_eq!(proposal.runner_up, proposal.token);
        assert_eq!((proposal.probability, proposal.margin), (1.0, 1.0));
    }
}

#[test]
fn scores_of_the_definition_decide() {
    // The rule, written out for a filter-free row; independent of tiles and bounds.
    let logits: Vec<f32> = (0..500u32).map(|i| ((i * 31) % 97) as f32 * 0.05).collect();
    let mut sampler = Sampler::new();
    for position in 0..100 {
        let params = SamplingParams { temperature: 0.8, seed: 99, ..warm() };
        let noise = Noise { seed: 99, position };
        let score = |v: usize| logits[v] * (1.0 / 0.8f32) + noise.gumbel(v as u32);
        let best = (0..500).fold(0, |best, v| if score(v) > score(best) { v } else { best });
        assert_eq!(sampler.sample(&logits, &params, position, &TokenHistory::none()).token, best as u32);
    }
}

/// Masks over `vocab` tokens: all, some, two and one allowed.
fn masks(vocab: u32) -> [TokenMask; 4] {
    [
        TokenMask::from_fn(vocab, |_| true),
        TokenMask::from_fn(vocab, |token| token % 3 != 1),
        TokenMask::from_fn(vocab, |token| token == 4 || token == vocab - 1),
        TokenMask::from_fn(vocab, |token| token == 6),
    ]
}

fn masked_params() -> [SamplingParams; 6] {
    [
        SamplingParams::greedy(),
        warm(),
        SamplingParams { temperature: 0.6, top_k: 3, ..warm() },
        SamplingParams { temperature: 1.4, top_p: 0.7, ..warm() },
        SamplingParams { min_p: 0.1, logit_bias: vec![(4, 3.0), (7, 9.0)], ..warm() },
        SamplingParams { top_k: 8, top_p: 0.9, repetition_penalty: 1.3, presence_penalty: 0.4, ..warm() },
    ]
}

/// The definition: filtering the distribution by hand. Probabilities are those of the allowed
/// logits alone; the choice is the argmax of score plus noise over the tokens that have any.
#[test]
fn a_mask_filters_the_distribution() {
    let history = TokenHistory::new(2, vec![3, 0, 7, 7]);
    let long: Vec<f32> = (0..700u32).map(|i| ((i * 7919) % 1009) as f32 * 0.012).collect();
    let mut sampler = Sampler::new();
    for logits in [twelve(), long] {
        for (mask, params) in
            masks(logits.len() as u32).iter().flat_map(|mask| masked_params().map(|params| (mask, params)))
        {
            let mut adjusted = logits.clone();
            adjust_logits(&mut adjusted, &params, &history);
            let ids: Vec<usize> = (0..logits.len()).filter(|&id| mask.allows(id as u32)).collect();
            let allowed: Vec<f32> = ids.iter().map(|&id| adjusted[id]).collect();
            // penalties and bias are in the allowed logits already
            let temperature = if params.temperature > 0.0 { params.temperature } else { 1.0 };
            let (top_k, top_p, min_p) = (params.top_k, params.top_p, params.min_p);
            let rest = SamplingParams { temperature, top_k, top_p, min_p, ..warm() };
            let expected = exact(&allowed, &rest, &TokenHistory::none());
            for position in 0..40 {
                let noise = Noise { seed: params.seed, position };
                let score = |i: usize| {
                    let noise = if params.temperature > 0.0 { noise.gumbel(ids[i] as u32) } else { 0.0 };
                    if expected[i] > 0.0 {
                        allowed[i] * (1.0 / temperature) + noise
                    } else {
                        f32::NEG_INFINITY
                    }
                };
                let best = (0..ids.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best });
                let sampled = sampler.sample_allowed(&logits, Some(mask), &params, position, &history);
                assert_eq!(sampled, SampledToken { token: ids[best] as u32, finite: true }, "{params:?}");
                let proposal = sampler.propose_allowed(&logits, Some(mask), &params, position, &history);
                assert_eq!((proposal.token, proposal.finite), (sampled.token, true));
                assert!(mask.allows(proposal.runner_up), "{params:?}");
                assert!((f64::from(proposal.probability) - expected[best]).abs() < 2e-6, "{params:?}");
            }
        }
    }
}

/// A draft vocabulary is the target's under a mask of the tokens that it has.
#[test]
fn a_draft_vocabulary_masks_the_targets() {
    let history = TokenHistory::new(2, vec![3, 0, 7, 7]);
    let to_target: Vec<TokenId> = vec![11, 4, 0, 7, 6, 2];
    let vocabulary = DraftVocabulary::new(&to_target, 12);
    let of_draft: Vec<f32> = to_target.iter().map(|&token| twelve()[token as usize]).collect();
    let mut sampler = Sampler::new();
    for params in masked_params() {
        for mask in masks(12) {
            let both = TokenMask::from_fn(12, |token| mask.allows(token) && to_target.contains(&token));
            for position in 0..40 {
                let ours =
                    sampler.propose_mapped(&of_draft, &vocabulary, Some(&mask), &params, position, &history);
                let expected = sampler.propose_allowed(&twelve(), Some(&both), &params, position, &history);
                assert_eq!(ours, expected, "{params:?}");
            }
        }
        let all = TokenMask::from_fn(12, |token| to_target.contains(&token));
        let ours = sampler.propose_mapped(&of_draft, &vocabulary, None, &params, 3, &history);
        assert_eq!(ours, sampler.propose_allowed(&twelve(), Some(&all), &params, 3, &history));
    }
}

#[test]
fn a_mask_that_allows_everything_changes_nothing() {
    let history = TokenHistory::new(2, vec![3, 0, 7, 7]);
    let mask = TokenMask::from_fn(12, |_| true);
    let mut sampler = Sampler::new();
    for params in masked_params() {
        for position in 0..100 {
            let masked = sampler.propose_allowed(&twelve(), Some(&mask), &params, position, &history);
            assert_eq!(masked, sampler.propose(&twelve(), &params, position, &history), "{params:?}");
        }
    }
}

#[test]
fn without_an_allowed_token_there_is_no_sample() {
    let (mut sampler, none) = (Sampler::new(), TokenHistory::none());
    // the second is for a larger vocabulary and allows none of this one
    for mask in [TokenMask::none(12), TokenMask::from_fn(40, |token| token >= 12)] {
        for params in masked_params() {
            assert!(!sampler.sample_allowed(&twelve(), Some(&mask), &params, 3, &none).finite);
            assert_eq!(
                sampler.propose_allowed(&twelve(), Some(&mask), &params, 3, &none),
                Proposal::default()
            );
        }
    }
}

#[test]
fn only_the_logits_of_allowed_tokens_must_be_finite() {
    let (mut sampler, none) = (Sampler::new(), TokenHistory::none());
    let mut logits = twelve();
    logits[5] = f32::NAN;
    for params in [SamplingParams::greedy(), warm()] {
        let without = TokenMask::from_fn(12, |token| token != 5);
        assert!(sampler.sample_allowed(&logits, Some(&without), &params, 0, &none).finite);
        let with = TokenMask::from_fn(12, |token| token < 6);
        assert!(!sampler.sample_allowed(&logits, Some(&with), &params, 0, &none).finite);
    }
}
