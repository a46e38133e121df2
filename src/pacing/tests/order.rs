//! Who is next, and at which pace.

use super::super::{LateAction, Pacer, Prompt, Ranking, Standing};
use super::{bound_by_memory_up_to_256_rows, pacer, row, step};
use crate::protocol::{DecodeView, Micros};
use crate::random::SplitMix64;

/// A prompt of so many tokens that is due at that millisecond.
fn due(tokens: u32, ms: u64) -> Prompt {
    Prompt { deadline: Some(Micros::from_millis(ms)), ..open(tokens) }
}

/// A prompt without a deadline.
fn open(remaining_tokens: u32) -> Prompt {
    Prompt {
        class: 0,
        arrival: Micros::ZERO,
        done_tokens: 0,
        remaining_tokens,
        deadline: None,
        resumes: false,
    }
}

fn ranking(pacer: &mut Pacer, prompts: &[Prompt], late_turn: bool) -> Ranking {
    let mut ranking = Ranking::default();
    pacer.rank(Micros::ZERO, prompts, &[], 256, late_turn, &mut ranking);
    ranking
}

/// Indices of the prompts, the next one first.
fn order(pacer: &mut Pacer, prompts: &[Prompt], late_turn: bool) -> Vec<u32> {
    ranking(pacer, prompts, late_turn).order.iter().map(|ranked| ranked.index).collect()
}

/// How many first tokens are given up.
fn late(now_ms: u64, prompts: &[Prompt], decoding: &[DecodeView], chunk_max: u32) -> usize {
    let mut ranking = Ranking::default();
    pacer().rank(Micros::from_millis(now_ms), prompts, decoding, chunk_max, false, &mut ranking);
    ranking.order.iter().filter(|ranked| ranked.standing == Standing::Late).count()
}

#[test]
fn prompts_of_one_length_are_served_by_deadline() {
    assert_eq!(order(&mut pacer(), &[due(100, 300), due(100, 100), due(100, 200)], false), [1, 2, 0]);
}

#[test]
fn of_equal_deadlines_the_first_come_is_first_served() {
    let arrived = |arrival| Prompt { arrival: Micros(arrival), ..due(100, 300) };
    assert_eq!(order(&mut pacer(), &[arrived(5), arrived(9), arrived(2), arrived(5)], false), [2, 0, 3, 1]);
}

#[test]
fn a_stream_that_stands_still_comes_first_whatever_its_class() {
    let resumed = |class, arrival| Prompt { class, arrival, resumes: true, ..open(5000) };
    let prompts = [due(100, 200), resumed(3, Micros(1)), open(10), resumed(1, Micros(2))];
    let ranking = ranking(&mut pacer(), &prompts, false);
    let first: Vec<_> = ranking.order.iter().map(|ranked| (ranked.index, ranked.standing)).collect();
    assert_eq!(first[..2], [(1, Standing::Resumes), (3, Standing::Resumes)]);
}

#[test]
fn a_more_urgent_class_comes_before_an_earlier_deadline() {
    let of_class = |class, ms| Prompt { class, ..due(100, ms) };
    let prompts = [of_class(1, 100), of_class(0, 300), of_class(2, 50), of_class(0, 200)];
    assert_eq!(order(&mut pacer(), &prompts, false), [3, 1, 0, 2]);
}

#[test]
fn prompts_without_a_deadline_follow_those_on_time_of_their_class() {
    let less_urgent = Prompt { class: 1, ..due(100, 100) };
    let prompts = [less_urgent, open(100), due(100, 900)];
    let ranking = ranking(&mut pacer(), &prompts, false);
    let order: Vec<_> = ranking.order.iter().map(|ranked| (ranked.index, ranked.standing)).collect();
    assert_eq!(order, [(2, Standing::OnTime), (1, Standing::Open), (0, Standing::OnTime)]);
}

#[test]
fn late_prompts_come_last_and_the_oldest_of_them_first() {
    // none of the first three can be in time; the oldest is due last
    let hopeless = |arrival, ms| Prompt { arrival: Micros(arrival), ..due(4000, ms) };
    let prompts = [hopeless(3, 1), hopeless(1, 3), hopeless(2, 2), Prompt { class: 1, ..open(10) }];
    assert_eq!(order(&mut pacer(), &prompts, false), [3, 1, 2, 0]);
}

#[test]
fn one_long_prompt_is_dropped_and_not_the_many_short_ones_behind_it() {
    // the long one takes 52 ms and is due first
    let mut prompts = vec![due(2000, 60)];
    prompts.extend((0..8).map(|_| due(200, 70)));
    let order = ranking(&mut pacer(), &prompts, false).order;
    let dropped: Vec<u32> =
        order.iter().filter(|ranked| ranked.standing == Standing::Late).map(|ranked| ranked.index).collect();
    assert_eq!(dropped, [0]);
    assert_eq!(order.last().map(|ranked| ranked.index), Some(0));
}

#[test]
fn time_that_passed_is_not_left() {
    // 26 ms of work
    let prompts = [due(1000, 30)];
    assert_eq!(late(0, &prompts, &[], 256), 0);
    assert_eq!(late(10, &prompts, &[], 256), 1);
    assert_eq!(late(99, &prompts, &[], 256), 1);
}

#[test]
fn a_prompt_takes_longer_beside_decoding_and_the_more_so_the_smaller_the_chunk() {
    let decoding = [row(10, 0, None)];
    assert_eq!(late(0, &[due(1000, 40)], &[], 250), 0);
    // four steps of 7 ms, or one
    assert_eq!(late(0, &[due(1000, 40)], &decoding, 250), 1);
    assert_eq!(late(0, &[due(1000, 40)], &decoding, 1000), 0);
}

#[test]
fn what_is_in_the_cache_is_not_done_again_but_attended_to() {
    // 2 µs for each thousand tokens before: another 40 µs a token
    let begun = Prompt { done_tokens: 20_000, ..due(1000, 60) };
    assert_eq!(late(0, &[due(1000, 60)], &[], 256), 0);
    assert_eq!(late(0, &[begun], &[], 256), 1);
}

/// Up to 8 prompts of one class with short and long deadlines, some resumed and some open.
fn random_prompts(random: &mut SplitMix64) -> Vec<Prompt> {
    let count = 1 + random.below(8);
    let one = |arrival| {
        let tokens = 1 + random.below(1500) as u32;
        let prompt = match random.below(8) {
            0 => Prompt { resumes: true, ..open(tokens) },
            1 => open(tokens),
            _ => due(tokens, random.below(120)),
        };
        Prompt { arrival: Micros(arrival), ..prompt }
    };
    (0..count).map(one).collect()
}

/// What a new prompt's attention takes: each token attends to itself and to those before it, at
/// 0.002 µs each.
fn attention_us(prompt: &Prompt) -> f64 {
    assert_eq!(prompt.done_tokens, 0, "a new prompt");
    let tokens = f64::from(prompt.remaining_tokens);
    0.002 * tokens * (tokens + 1.0) / 2.0
}

/// Time of a new prompt that is prefilled in chunks of 256 tokens while nothing decodes. A chunk
/// takes 50 µs and 25 µs for each row but the first, for which the weights are read anyway.
fn alone_us(prompt: &Prompt) -> f64 {
    f64::from(prompt.remaining_tokens) * (50.0 + 25.0 * 255.0) / 256.0 + attention_us(prompt)
}

/// Time until a prompt has to be prefilled, at time 0: a twentieth of its objective is kept in
/// reserve.
fn left_us(prompt: &Prompt) -> f64 {
    let deadline = prompt.deadline.expect("has one").0 as f64;
    deadline - 0.05 * (deadline - prompt.arrival.0 as f64).max(0.0)
}

/// Whether all of `chosen` are in time if they are served by deadline after what resumes.
fn feasible(prompts: &[Prompt], chosen: &[usize]) -> bool {
    let mut done_us: f64 = prompts.iter().filter(|prompt| prompt.resumes).map(alone_us).sum();
    let mut by_deadline: Vec<&Prompt> = chosen.iter().map(|&index| &prompts[index]).collect();
    by_deadline.sort_by_key(|prompt| prompt.deadline);
    by_deadline.into_iter().all(|prompt| {
        done_us += alone_us(prompt);
        done_us <= left_us(prompt)
    })
}

#[test]
fn no_choice_makes_fewer_prompts_late() {
    let mut dropped_any = 0;
    for seed in 0..400 {
        let prompts = random_prompts(&mut SplitMix64::new(seed));
        let order = ranking(&mut pacer(), &prompts, false).order;
        let on_time = order.iter().filter(|ranked| ranked.standing == Standing::OnTime);
        let on_time: Vec<usize> = on_time.map(|ranked| ranked.index as usize).collect();
        assert!(feasible(&prompts, &on_time), "seed {seed}: {on_time:?} of {prompts:?}");
        let dated: Vec<usize> = (0..prompts.len()).filter(|&i| prompts[i].deadline.is_some()).collect();
        let most = (0u32..1 << dated.len())
            .map(|set| (0..dated.len()).filter(|i| set >> i & 1 == 1).map(|i| dated[i]).collect::<Vec<_>>())
            .filter(|chosen| feasible(&prompts, chosen))
            .map(|chosen| chosen.len())
            .max();
        assert_eq!(Some(on_time.len()), most, "seed {seed}: {prompts:?}");
        dropped_any += usize::from(on_time.len() < dated.len());
    }
    assert!((100..400).contains(&dropped_any), "{dropped_any} of 400 had to drop some");
}

#[test]
fn a_reserve_is_kept_for_the_end_of_the_step_and_the_way_to_the_client() {
    // 26 ms of work
    assert_eq!(late(0, &[due(1000, 28)], &[], 256), 0);
    assert_eq!(late(0, &[due(1000, 27)], &[], 256), 1);
    // it is a share of the objective, not of what is left of it
    let arrived = |ms| Prompt { arrival: Micros::from_millis(ms), ..due(1000, 1028) };
    assert_eq!(late(1000, &[arrived(1000)], &[], 256), 0);
    assert_eq!(late(1000, &[arrived(0)], &[], 256), 1);
}

#[test]
fn a_short_prompt_goes_before_a_long_one_that_has_time_to_wait() {
    // 4 ms and 26 ms of work, of three tenths of its objective
    assert_eq!(order(&mut pacer(), &[due(1000, 110), due(160, 900)], false), [1, 0]);
    assert_eq!(order(&mut pacer(), &[due(1000, 90), due(160, 900)], false), [0, 1]);
    // it has waited for long enough
    let at = |now_ms| {
        let mut ranking = Ranking::default();
        let prompts = [due(1000, 500), due(160, 900)];
        pacer().rank(Micros::from_millis(now_ms), &prompts, &[], 256, false, &mut ranking);
        ranking.order[0].index
    };
    assert_eq!([at(0), at(118), at(122)], [1, 1, 0]);
    // what was begun counts for what is left of it
    let begun = Prompt { done_tokens: 900, ..due(100, 900) };
    assert_eq!(order(&mut pacer(), &[due(160, 800), begun], false), [1, 0]);
}

#[test]
fn what_is_served_before_uses_up_a_long_prompts_patience() {
    let long_and_short = [due(1000, 110), due(160, 900)];
    let stream = Prompt { resumes: true, ..open(200) };
    let behind = |first: Prompt| order(&mut pacer(), &[long_and_short[0], long_and_short[1], first], false);
    assert_eq!(behind(Prompt { remaining_tokens: 20, ..stream }), [2, 1, 0]);
    assert_eq!(behind(stream), [2, 0, 1], "5 ms more");
}

#[test]
fn only_prompts_on_time_are_put_shortest_first() {
    let arrived = |arrival, prompt| Prompt { arrival: Micros(arrival), ..prompt };
    let late = [arrived(1, due(5000, 3)), arrived(2, due(4000, 3))];
    let open_ones = [arrived(1, open(500)), arrived(2, open(50))];
    let streams = open_ones.map(|prompt| Prompt { resumes: true, ..prompt });
    for prompts in [late, open_ones, streams] {
        assert_eq!(order(&mut pacer(), &prompts, false), [0, 1], "{prompts:?}");
    }
}

#[test]
fn a_short_prompt_of_a_less_urgent_class_stays_behind() {
    let prompts = [Prompt { class: 1, ..due(10, 900) }, due(1000, 900), due(500, 900)];
    assert_eq!(order(&mut pacer(), &prompts, false), [2, 1, 0]);
    let prompts = [open(10), due(1000, 900), due(500, 900)];
    assert_eq!(order(&mut pacer(), &prompts, false), [2, 1, 0], "nor without a deadline");
}

#[test]
fn late_prompts_that_keep_their_place_do_so_beside_shorter_ones_on_time() {
    let mut pacer = pacer().with_late(LateAction::Queue);
    assert_eq!(order(&mut pacer, &[due(1000, 300), due(160, 900), due(4000, 5)], false), [2, 0, 1]);
}

/// All orders of `count` things.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    let Some(rest) = count.checked_sub(1) else { return vec![Vec::new()] };
    let insert = |order: Vec<usize>| {
        (0..count).map(move |place| {
            let mut order = order.clone();
            order.insert(place, rest);
            order
        })
    };
    permutations(rest).into_iter().flat_map(insert).collect()
}

#[test]
fn no_order_that_takes_three_tenths_of_each_objective_has_a_shorter_mean_wait() {
    let (mut compared, mut by_deadline) = (0, 0);
    for seed in 0..300 {
        let mut random = SplitMix64::new(seed);
        let one = |arrival| Prompt {
            arrival: Micros(arrival),
            ..due(1 + random.below(1000) as u32, 20 + random.below(800))
        };
        let prompts: Vec<Prompt> = (0..5).map(one).collect();
        let waits_us = |order: &[usize]| {
            let (mut done_us, mut sum_us, mut in_time) = (0.0, 0.0, true);
            for &index in order {
                done_us += alone_us(&prompts[index]);
                sum_us += done_us;
                let objective_us = prompts[index].deadline.expect("has one").0 as f64 - index as f64;
                in_time &= done_us <= 0.3 * objective_us + index as f64;
            }
            in_time.then_some(sum_us)
        };
        let least_us = permutations(5).iter().filter_map(|order| waits_us(order)).min_by(f64::total_cmp);
        let Some(least_us) = least_us else { continue };
        let chosen: Vec<usize> =
            order(&mut pacer(), &prompts, false).iter().map(|&index| index as usize).collect();
        let chosen_us = waits_us(&chosen).expect("every wait is within its bound");
        assert!((chosen_us - least_us).abs() < 1e-6, "seed {seed}: {chosen:?} of {prompts:?}");
        compared += 1;
        by_deadline += usize::from(chosen.is_sorted_by_key(|&index| prompts[index].deadline));
    }
    assert!(compared > 50 && by_deadline * 2 < compared, "{by_deadline} of {compared} by deadline");
}

/// On time, late and oldest, late.
fn with_late_ones() -> [Prompt; 3] {
    let arrived = |arrival, prompt| Prompt { arrival: Micros(arrival), ..prompt };
    [arrived(1, due(100, 90)), arrived(2, due(4000, 3)), arrived(3, due(4000, 2))]
}

#[test]
fn in_its_turn_the_oldest_late_prompt_comes_first_even_before_a_stream() {
    for action in [LateAction::Demote, LateAction::Reject] {
        let mut pacer = pacer().with_late(action);
        assert_eq!(order(&mut pacer, &with_late_ones(), false), [0, 1, 2], "{action:?}");
        assert_eq!(order(&mut pacer, &with_late_ones(), true), [1, 0, 2], "{action:?}");
    }
    let stream = Prompt { resumes: true, ..open(10) };
    let mut prompts = with_late_ones().to_vec();
    prompts.push(stream);
    assert_eq!(order(&mut pacer(), &prompts, true), [1, 3, 0, 2]);
}

#[test]
fn the_turn_goes_to_the_oldest_whatever_its_class() {
    let [on_time, oldest, newer] = with_late_ones();
    let prompts = [on_time, Prompt { class: 2, ..oldest }, newer];
    assert_eq!(order(&mut pacer(), &prompts, false), [0, 2, 1]);
    assert_eq!(order(&mut pacer(), &prompts, true), [1, 0, 2]);
}

#[test]
fn late_prompts_that_keep_their_place_get_no_turn_besides() {
    let mut pacer = pacer().with_late(LateAction::Queue);
    for late_turn in [false, true] {
        assert_eq!(order(&mut pacer, &with_late_ones(), late_turn), [2, 1, 0]);
    }
}

#[test]
fn a_turn_without_a_late_prompt_changes_nothing() {
    let prompts = [due(100, 300), due(100, 100), open(5)];
    assert_eq!(order(&mut pacer(), &prompts, true), order(&mut pacer(), &prompts, false));
}

fn paces(prompts: &[Prompt], decoding: &[DecodeView]) -> Vec<u32> {
    let mut ranking = Ranking::default();
    pacer().rank(Micros::ZERO, prompts, decoding, 4096, false, &mut ranking);
    ranking.paces
}

#[test]
fn steps_of_a_prompts_pace_finish_it_in_time_and_smaller_ones_would_not_keep_the_reserve() {
    let decoding = vec![row(10, 0, None); 3];
    // three rows, 500 tokens of context behind each, the host
    let decode_us = 7006.0 + 2.0 * 25.0 + 1500.0 * 0.05 + 60.0;
    // what is planned with: steps with one token already, and the cost of a chunk of 4096 shared out
    let (step_us, token_us) = (decode_us + 50.0 + 25.0, 25.0 + 50.0 / 4096.0);
    let mut pacer = pacer();
    for seed in 0..200 {
        let mut random = SplitMix64::new(seed);
        let prompts: Vec<Prompt> =
            (0..4).map(|_| due(1 + random.below(800) as u32, 200 + random.below(2000))).collect();
        let mut ranking = Ranking::default();
        pacer.rank(Micros::ZERO, &prompts, &decoding, 4096, false, &mut ranking);
        assert_eq!(ranking.paces.len(), 4, "all are on time");
        let (mut tokens, mut attention_us) = (0.0, 0.0);
        for (ranked, &pace) in ranking.order.iter().zip(&ranking.paces) {
            let prompt = prompts[ranked.index as usize];
            tokens += f64::from(prompt.remaining_tokens);
            attention_us += self::attention_us(&prompt);
            let left_us = left_us(&prompt);
            let steps = (tokens / f64::from(pace)).ceil();
            let taken_us = steps * (decode_us + 50.0) + tokens * 25.0 + attention_us;
            assert!(taken_us <= left_us, "seed {seed}");
            let slower_us = tokens / f64::from(pace - 1) * step_us + tokens * token_us + attention_us;
            assert!(pace == 1 || slower_us > 0.8 * left_us, "seed {seed}: {pace} hurries");
        }
    }
}

#[test]
fn a_prompt_is_priced_in_full_chunks_beside_the_rows_that_decode_and_are_verified() {
    let mut pacer = bound_by_memory_up_to_256_rows();
    let decoding = vec![row(10, 0, None); 64];
    let report = step(&pacer, decoding.clone(), 2, 1.0);
    pacer.observe(&report);
    // 192 rows: half of a chunk of 128 is above 256, so a token takes 10 µs; eight steps of 5 ms
    let mut standing = |ms| {
        let mut ranking = Ranking::default();
        pacer.rank(Micros::ZERO, &[due(1024, ms)], &decoding, 128, false, &mut ranking);
        ranking.order[0].standing
    };
    // 50.24 ms are 95 % of 52.9
    assert_eq!([standing(52), standing(53)], [Standing::Late, Standing::OnTime]);
}

#[test]
fn a_looser_deadline_needs_a_smaller_pace() {
    let decoding = [row(10, 0, None)];
    let by_deadline: Vec<u32> =
        [80, 160, 320, 640, 1280].iter().map(|&ms| paces(&[due(1000, ms)], &decoding)[0]).collect();
    assert!(by_deadline.is_sorted_by(|tighter, looser| tighter > looser), "{by_deadline:?}");
}

#[test]
fn a_pace_counts_what_goes_before_the_prompt() {
    let paces = |prompts: &[Prompt]| paces(prompts, &[row(10, 0, None)]);
    let alone = paces(&[due(200, 300)]);
    assert!(paces(&[due(1000, 200), due(200, 300)])[1] > 2 * alone[0]);
    let stream = Prompt { resumes: true, ..open(4000) };
    assert!(paces(&[due(200, 300), stream])[0] > 2 * alone[0]);
    // late ones and those without a deadline come after
    assert_eq!(paces(&[due(90_000, 200), open(500), due(200, 300)]), alone);
}

#[test]
fn a_prompt_that_is_barely_in_time_goes_at_full_pace() {
    // it takes 26 ms, of 26.6
    assert_eq!(paces(&[due(1000, 28)], &[]), [1000]);
}

#[test]
fn deadlines_that_have_passed_or_never_come_are_defined() {
    let at = |deadline| Prompt { deadline: Some(Micros(deadline)), ..open(100_000) };
    let never = paces(&[at(u64::MAX)], &[row(1, 0, None)]);
    assert_eq!(never, [1]);
    for deadline in [0, 1_000_000] {
        for action in [LateAction::Queue, LateAction::Demote, LateAction::Reject] {
            let mut ranking = Ranking::default();
            let mut pacer = pacer().with_late(action);
            pacer.rank(Micros(1_000_000), &[at(deadline)], &[], 256, true, &mut ranking);
            assert_eq!(ranking.order[0].standing, Standing::Late);
            assert!(ranking.paces.is_empty(), "no pace helps");
        }
    }
}

#[test]
fn nothing_carries_over_from_one_ranking_to_the_next() {
    let mut pacer = pacer();
    let mut ranking = Ranking::default();
    pacer.rank(Micros::ZERO, &with_late_ones(), &[row(1, 0, None)], 256, true, &mut ranking);
    pacer.rank(Micros::ZERO, &[due(100, 90)], &[], 256, false, &mut ranking);
    assert_eq!((ranking.order.len(), ranking.paces.len()), (1, 1));
    assert_eq!(ranking.order[0].standing, Standing::OnTime);
    pacer.rank(Micros::ZERO, &[], &[], 256, true, &mut ranking);
    assert!(ranking.order.is_empty() && ranking.paces.is_empty());
}
