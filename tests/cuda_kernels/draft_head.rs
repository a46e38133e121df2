//! The kernels of draft heads against double precision.

use half::bf16;
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{
    self, ChainInputParams, ChainOutputParams, ConfidenceParams, DRAFT_LOGIT_NONE, DRAFT_LOGIT_NONE_FALL,
    DraftProposal, FuseInputParams, SpreadLogitsParams, TakeLinksParams, TakeRowsParams, TakeStatesParams,
};

use crate::support::{Bench, assert_close, f64_of};

const EPS: f32 = 1e-5;
const SHAPES: [[usize; 2]; 5] = [[1, 128], [3, 384], [17, 896], [64, 4096], [5, 8200]];

/// Runs a launcher.
macro_rules! launch {
    ($params:expr, $bench:expr, $launcher:ident) => {{
        // SAFETY: the parameters point to device buffers of the shapes that they name, which live
        // until the caller has synchronised by downloading the results.
        let status = unsafe { kernels::$launcher($params, $bench.stream.raw()) };
        check_launch(status, stringify!($launcher)).expect("launches")
    }};
}

/// RMSNorm in fp64.
fn norm(row: &[f64], weight: &[u16]) -> Vec<f64> {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    row.iter().zip(weight).map(|(x, &w)| x * scale * f64_of(w)).collect()
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().copied().map(f64::from).collect()
}

fn wide16(row: &[u16]) -> Vec<f64> {
    row.iter().copied().map(f64_of).collect()
}

/// Some rows of `0..count`, each with a chance of a quarter to be padding.
fn sources(bench: &mut Bench, rows: usize, count: usize) -> Vec<i32> {
    (0..rows)
        .map(|row| if row > 0 && bench.random.below(4) == 0 { -1 } else { bench.random.below(count) as i32 })
        .collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn states_are_taken_of_the_first_rows_alone_into_their_columns() {
    let mut bench = Bench::new();
    for [rows, hidden] in SHAPES {
        let (taken, first, column, columns) = (rows.div_ceil(2), 2, 1, 3);
        let residual = bench.random.f32s(rows * hidden, 3.0);
        let device_residual = bench.upload(&residual);
        let span = bench.upload(&[first as i32, taken as i32]);
        let mut states = bench.poisoned::<u16>((first + rows) * columns * hidden);
        let params = TakeStatesParams {
            residual: device_residual.ptr(),
            states: states.mut_ptr().wrapping_add(column * hidden),
            span: span.ptr(),
            stride: (columns * hidden) as i64,
            rows: rows as i32,
            hidden: hidden as i32,
        };
        launch!(&params, bench, specserve_take_states);
        for (at, &bits) in bench.download(&states).iter().enumerate() {
            let (row, in_row) = (at / (columns * hidden), at % (columns * hidden));
            let inside = (first..first + taken).contains(&row) && in_row / hidden == column;
            let want = if inside {
                bf16::from_f32(residual[(row - first) * hidden + in_row % hidden]).to_bits()
            } else {
                0xffff
            };
            assert_eq!(bits, want, "row {row}, number {in_row} of {rows} x {hidden}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn states_come_together_and_are_normed_raw_joint_or_each() {
    let mut bench = Bench::new();
    for ([rows, width], features) in SHAPES.into_iter().zip([3, 1, 5, 3, 2]) {
        let all = features * width;
        let states = bench.random.bf16s(9 * all, 2.0);
        let weight = bench.random.bf16s(all, 1.0);
        let sources = sources(&mut bench, rows, 9);
        let (device_states, device_weight) = (bench.upload(&states), bench.upload(&weight));
        let device_sources = bench.upload(&sources);
        for (normed, joint) in [(false, false), (true, true), (true, false)] {
            let mut out = bench.poisoned::<u16>(rows * all);
            let params = FuseInputParams {
                states: device_states.ptr(),
                sources: device_sources.ptr(),
                weight: if normed { device_weight.ptr() } else { std::ptr::null() },
                out: out.mut_ptr(),
                eps: EPS,
                rows: rows as i32,
                width: width as i32,
                features: features as i32,
                joint: i32::from(joint),
            };
            launch!(&params, bench, specserve_fuse_input);
            let got = bench.download(&out);
            for (row, &source) in sources.iter().enumerate() {
                let got = &got[row * all..(row + 1) * all];
                let what =
                    format!("row {row} of {rows} x {features} x {width}, normed {normed}, joint {joint}");
                if source < 0 {
                    assert!(got.iter().all(|&bits| bits == 0), "{what}");
                    continue;
                }
                let from = wide16(&states[source as usize * all..][..all]);
                let part = if joint { all } else { width };
                let parts = from.chunks(part).zip(weight.chunks(part));
                let want: Vec<f64> =
                    if normed { parts.flat_map(|(x, w)| norm(x, w)).collect() } else { from.clone() };
                assert_close(got, &want, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_chain_starts_from_the_norms_of_embedding_and_state() {
    let mut bench = Bench::new();
    for [rows, hidden] in SHAPES {
        let vocab = 100;
        let table = bench.random.bf16s(vocab * hidden, 1.0);
        let states = bench.random.f32s(70 * hidden, 2.0);
        let [embedding_norm, state_norm] = [(); 2].map(|()| bench.random.bf16s(hidden, 1.0));
        let tokens = sources(&mut bench, rows, vocab);
        let places = sources(&mut bench, rows, 70);
        let device = [&table, &embedding_norm, &state_norm].map(|numbers| bench.upload(numbers));
        let (device_states, device_tokens) = (bench.upload(&states), bench.upload(&tokens));
        let device_places = bench.upload(&places);
        for (normed, gathered) in [(false, true), (true, true), (false, false)] {
            let mut out = bench.poisoned::<u16>(rows * 2 * hidden);
            let mut residual = bench.poisoned::<f32>(rows * hidden);
            let params = ChainInputParams {
                table: device[0].ptr(),
                tokens: device_tokens.ptr(),
                states: device_states.ptr(),
                sources: if gathered { device_places.ptr() } else { std::ptr::null() },
                embedding_norm: device[1].ptr(),
                state_norm: device[2].ptr(),
                out: out.mut_ptr(),
                residual: residual.mut_ptr(),
                eps: EPS,
                rows: rows as i32,
                hidden: hidden as i32,
                vocab: vocab as i32,
                normed_residual: i32::from(normed),
            };
            launch!(&params, bench, specserve_chain_input);
            let (out, residual) = (bench.download(&out), bench.download(&residual));
            for row in 0..rows {
                let what = format!("row {row} of {rows} x {hidden}, normed {normed}, gathered {gathered}");
                let zeros = vec![0.0; hidden];
                let token = tokens[row];
                let embedding = if token < 0 {
                    zeros.clone()
                } else {
                    wide16(&table[token as usize * hidden..][..hidden])
                };
                let place = if gathered { places[row] } else { row as i32 };
                let state =
                    if place < 0 { zeros } else { wide(&states[place as usize * hidden..][..hidden]) };
                let of_state = norm(&state, &state_norm);
                let got = &out[row * 2 * hidden..][..2 * hidden];
                assert_close(&got[..hidden], &norm(&embedding, &embedding_norm), &what);
                assert_close(&got[hidden..], &of_state, &what);
                let want = if normed { &of_state } else { &state };
                for (got, want) in residual[row * hidden..][..hidden].iter().zip(want) {
                    assert!((f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0), "{what}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn rows_that_draft_come_together() {
    let mut bench = Bench::new();
    for [rows, hidden] in SHAPES {
        let width = hidden / 2 / 8 * 8;
        let attended = bench.random.bf16s(70 * width, 1.0);
        let stream = bench.random.f32s(70 * hidden, 1.0);
        let gather = sources(&mut bench, rows, 70);
        let (device_attended, device_stream) = (bench.upload(&attended), bench.upload(&stream));
        let device_gather = bench.upload(&gather);
        let mut attended_out = bench.poisoned::<u16>(rows * width);
        let mut residual = bench.poisoned::<f32>(rows * hidden);
        let params = TakeLinksParams {
            gather: device_gather.ptr(),
            attended: device_attended.ptr(),
            attended_out: attended_out.mut_ptr(),
            stream: device_stream.ptr(),
            residual: residual.mut_ptr(),
            rows: rows as i32,
            width: width as i32,
            hidden: hidden as i32,
        };
        launch!(&params, bench, specserve_take_links);
        let (got, got_stream) = (bench.download(&attended_out), bench.download(&residual));
        for (row, &from) in gather.iter().enumerate() {
            let from = usize::try_from(from).ok();
            let want = from.map_or(vec![0; width], |from| attended[from * width..][..width].to_vec());
            assert_eq!(got[row * width..][..width], want);
            let want = from.map_or(vec![0.0; hidden], |from| stream[from * hidden..][..hidden].to_vec());
            assert_eq!(got_stream[row * hidden..][..hidden], want);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_chain_ends_in_a_norm_and_leaves_its_output_to_the_next_pass() {
    let mut bench = Bench::new();
    for [rows, hidden] in SHAPES {
        let residual = bench.random.f32s(rows * hidden, 2.0);
        let delta = bench.random.bf16s(rows * hidden, 1.0);
        let weight = bench.random.bf16s(hidden, 1.0);
        let (device_residual, device_delta) = (bench.upload(&residual), bench.upload(&delta));
        let device_weight = bench.upload(&weight);
        for (added, carry_normed) in [(true, false), (false, true)] {
            let mut out = bench.poisoned::<u16>(rows * hidden);
            let mut carried = bench.poisoned::<f32>(rows * hidden);
            let params = ChainOutputParams {
                residual: device_residual.ptr(),
                delta: if added { device_delta.ptr() } else { std::ptr::null() },
                weight: device_weight.ptr(),
                out: out.mut_ptr(),
                carried: carried.mut_ptr(),
                eps: EPS,
                rows: rows as i32,
                hidden: hidden as i32,
                carry_normed: i32::from(carry_normed),
            };
            launch!(&params, bench, specserve_chain_output);
            let (out, carried) = (bench.download(&out), bench.download(&carried));
            for row in 0..rows {
                let what = format!("row {row} of {rows} x {hidden}, added {added}, normed {carry_normed}");
                let range = row * hidden..(row + 1) * hidden;
                let more = wide16(&delta[range.clone()]);
                let output: Vec<f64> = wide(&residual[range.clone()])
                    .iter()
                    .zip(more)
                    .map(|(x, more)| if added { x + more } else { *x })
                    .collect();
                let normed = norm(&output, &weight);
                assert_close(&out[range.clone()], &normed, &what);
                let want = if carry_normed { &normed } else { &output };
                for (got, want) in carried[range].iter().zip(want) {
                    assert!((f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0), "{what}");
                }
            }
        }
    }
}

/// The logit of a token that a head cannot draft.
pub fn no_draft(token: usize) -> f32 {
    DRAFT_LOGIT_NONE as f32 - token as f32 * DRAFT_LOGIT_NONE_FALL as f32
}

#[test]
#[ignore = "needs a CUDA device"]
fn logits_of_draft_tokens_stand_at_the_targets_and_no_other_token_can_win() {
    let mut bench = Bench::new();
    for (rows, draft_tokens, vocab) in [(1, 40, 96), (3, 2048, 4096), (7, 32_000, 128_256)] {
        let logits = bench.random.f32s(rows * draft_tokens, 3.0);
        let draft_of: Vec<i32> = (0..vocab)
            .map(|token| if token % 2 == 0 && token / 2 < draft_tokens { (token / 2) as i32 } else { -1 })
            .collect();
        let (device_logits, device_draft_of) = (bench.upload(&logits), bench.upload(&draft_of));
        let mut out = bench.poisoned::<f32>(rows * vocab);
        let params = SpreadLogitsParams {
            logits: device_logits.ptr(),
            draft_of: device_draft_of.ptr(),
            out: out.mut_ptr(),
            rows: rows as i32,
            draft_tokens: draft_tokens as i32,
            vocab: vocab as i32,
        };
        launch!(&params, bench, specserve_spread_logits);
        for (at, got) in bench.download(&out).into_iter().enumerate() {
            let draft = usize::try_from(draft_of[at % vocab]).ok();
            let want = draft.map_or(no_draft(at % vocab), |draft| logits[at / vocab * draft_tokens + draft]);
            assert_eq!(got, want, "token {} of row {}", at % vocab, at / vocab);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn rows_of_a_table_are_taken_by_token() {
    let mut bench = Bench::new();
    for [rows, width] in SHAPES {
        let table = bench.random.bf16s(50 * width, 1.0);
        let mut tokens = sources(&mut bench, rows, 50);
        tokens[rows / 2] = 50; // beyond the table
        let (device_table, device_tokens) = (bench.upload(&table), bench.upload(&tokens));
        let mut out = bench.poisoned::<u16>(rows * width);
        let params = TakeRowsParams {
            table: device_table.ptr(),
            tokens: device_tokens.ptr(),
            out: out.mut_ptr(),
            rows: rows as i32,
            width: width as i32,
            vocab: 50,
        };
        launch!(&params, bench, specserve_take_rows);
        let got = bench.download(&out);
        for (row, &token) in tokens.iter().enumerate() {
            let known = usize::try_from(token).ok().filter(|&token| token < 50);
            let want = known.map_or(vec![0; width], |token| table[token * width..][..width].to_vec());
            assert_eq!(got[row * width..][..width], want);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn confidence_is_the_sigmoid_of_state_and_token_before() {
    let mut bench = Bench::new();
    for (slots, sequences, hidden, rank) in [(1, 1, 128, 0), (7, 3, 384, 64), (5, 16, 4096, 256)] {
        let (rows, vocab) = (slots * sequences, 40);
        let states = bench.random.bf16s(rows * hidden, 1.0);
        let features = bench.random.bf16s(vocab * rank.max(1), 1.0);
        let weight = bench.random.f32s(hidden + rank, 0.05);
        let anchors = sources(&mut bench, sequences, vocab);
        let before: Vec<DraftProposal> = (0..rows)
            .map(|row| DraftProposal {
                token: bench.random.below(vocab) as i32,
                runner_up: 7,
                probability: 0.5,
                margin: 0.25,
                finite: i32::from(row % 5 != 3),
            })
            .collect();
        let words: Vec<i32> = before
            .iter()
            .flat_map(|p| {
                [p.token, p.runner_up, p.probability.to_bits() as i32, p.margin.to_bits() as i32, p.finite]
            })
            .collect();
        let mut proposals = bench.upload(&words);
        let device = [&states, &features].map(|numbers| bench.upload(numbers));
        let (device_weight, device_anchors) = (bench.upload(&weight), bench.upload(&anchors));
        let bias = 0.3;
        let params = ConfidenceParams {
            states: device[0].ptr(),
            features: device[1].ptr(),
            anchors: device_anchors.ptr(),
            weight: device_weight.ptr(),
            proposals: proposals.mut_ptr().cast(),
            bias,
            slots: slots as i32,
            sequences: sequences as i32,
            hidden: hidden as i32,
            rank: rank as i32,
            vocab: vocab as i32,
        };
        launch!(&params, bench, specserve_confidence);
        let got = bench.download(&proposals);
        for row in 0..rows {
            let token = if row < sequences { anchors[row] } else { before[row - sequences].token };
            let state = wide16(&states[row * hidden..][..hidden]);
            let feature = usize::try_from(token)
                .map_or(vec![0.0; rank], |token| wide16(&features[token * rank..][..rank]));
            let dot: f64 = state.iter().chain(&feature).zip(&weight).map(|(x, &w)| x * f64::from(w)).sum();
            let want = 1.0 / (1.0 + (-dot - f64::from(bias)).exp());
            let mut expected = words[row * 5..][..5].to_vec();
            let probability = f64::from(f32::from_bits(got[row * 5 + 2] as u32));
            if before[row].finite != 0 {
                assert!((probability - want).abs() < 1e-4, "row {row}: {probability}, not {want}");
                expected[2] = got[row * 5 + 2];
            }
            assert_eq!(got[row * 5..][..5], expected, "nothing else changes");
        }
    }
}
