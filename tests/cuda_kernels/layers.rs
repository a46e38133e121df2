//! Embedding, RMSNorm, QKV with rotation and KV write, SwiGLU, KV compaction.

use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{
    self, CompactParams, EmbeddingParams, QkvParams, RmsNormParams, SwigluParams,
};
use specserve::model::{Rope, RopeScaling};

use crate::support::{Bench, assert_close, f64_of};

const ROWS: [usize; 5] = [1, 3, 17, 64, 256];
const WIDTHS: [usize; 7] = [128, 384, 896, 2048, 4096, 8192, 16384];
const BLOCK_TOKENS: usize = 16;
const POISON: u16 = 0xffff;

/// Runs a launcher in both versions.
macro_rules! launch {
    ($naive:expr, $params:expr, $stream:expr, $fast:ident, $plain:ident) => {{
        // SAFETY: the parameters point to device buffers of the shapes that they name, which
        // live until the caller has synchronised by downloading the results.
        let status = unsafe {
            if $naive {
                kernels::$plain($params, $stream.raw())
            } else {
                kernels::$fast($params, $stream.raw())
            }
        };
        check_launch(status, stringify!($fast)).expect("launches")
    }};
}

#[test]
#[ignore = "needs a CUDA device"]
fn embedding_copies_rows_of_the_table_and_zeroes_padding() {
    let mut bench = Bench::new();
    for (rows, hidden) in [(1, 128), (5, 384), (64, 2048), (256, 4096)] {
        let vocab = 1000;
        if bench.leaves_out(rows * hidden) {
            continue;
        }
        let table = bench.random.bf16s(vocab * hidden, 1.0);
        let mut tokens: Vec<i32> = (0..rows).map(|_| bench.random.below(vocab) as i32).collect();
        tokens[rows - 1] = if rows > 1 { -1 } else { vocab as i32 - 1 };
        tokens[rows / 2] = if rows > 4 { vocab as i32 } else { tokens[rows / 2] };
        let (device_table, device_tokens) = (bench.upload(&table), bench.upload(&tokens));
        for naive in [false, true] {
            let mut residual = bench.poisoned::<f32>(rows * hidden);
            let params = EmbeddingParams {
                table: device_table.ptr(),
                tokens: device_tokens.ptr(),
                residual: residual.mut_ptr(),
                rows: rows as i32,
                hidden: hidden as i32,
                vocab: vocab as i32,
            };
            launch!(naive, &params, bench.stream, specserve_embedding, specserve_embedding_naive);
            for (i, got) in bench.download(&residual).into_iter().enumerate() {
                let token = tokens[i / hidden];
                let known = (0..vocab as i32).contains(&token);
                let want = if known { f64_of(table[token as usize * hidden + i % hidden]) } else { 0.0 };
                assert_eq!(f64::from(got), want, "row {} of {rows}", i / hidden);
            }
        }
    }
}

/// RMSNorm in fp64 over the fp32 sum, and its scale.
fn norm_oracle(sum: &[f32], weight: &[u16], eps: f32) -> (Vec<f64>, f64) {
    let mean = sum.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / sum.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    (sum.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64_of(w)).collect(), scale)
}

#[test]
#[ignore = "needs a CUDA device"]
fn rmsnorm_adds_the_delta_and_normalises_each_row() {
    let mut bench = Bench::new();
    for (rows, hidden) in ROWS.into_iter().flat_map(|r| WIDTHS.map(|w| (r, w))) {
        for (naive, with_delta) in [(false, true), (false, false), (true, true)] {
            if bench.leaves_out(rows * hidden) || naive && rows * hidden > 1 << 20 {
                continue;
            }
            for scale_left_out in [false, true] {
                check_rmsnorm(&mut bench, [rows, hidden], naive, with_delta, scale_left_out);
            }
        }
    }
    for (rows, hidden) in [(4096, 4096), (1000, 16384)] {
        if !bench.leaves_out(rows * hidden) {
            check_rmsnorm(&mut bench, [rows, hidden], false, true, true);
        }
    }
}

fn check_rmsnorm(
    bench: &mut Bench,
    [rows, hidden]: [usize; 2],
    naive: bool,
    with_delta: bool,
    scale_left_out: bool,
) {
    let eps = 1e-5;
    let before = bench.random.f32s(rows * hidden, 3.0);
    let delta = bench.random.bf16s(rows * hidden, 1.0);
    let weight = bench.random.bf16s(hidden, 1.0);
    let mut residual = bench.upload(&before);
    let (device_delta, device_weight) = (bench.upload(&delta), bench.upload(&weight));
    let mut out = bench.poisoned::<u16>(rows * hidden);
    let mut scales = bench.poisoned::<f32>(rows);
    let params = RmsNormParams {
        residual: residual.mut_ptr(),
        delta: if with_delta { device_delta.ptr() } else { std::ptr::null() },
        weight: device_weight.ptr(),
        out: out.mut_ptr(),
        gather: std::ptr::null(),
        scales: if scale_left_out { scales.mut_ptr() } else { std::ptr::null_mut() },
        eps,
        rows: rows as i32,
        hidden: hidden as i32,
    };
    launch!(naive, &params, bench.stream, specserve_rmsnorm, specserve_rmsnorm_naive);
    let (got, after) = (bench.download(&out), bench.download(&residual));
    let scales = bench.download(&scales);
    for (row, &own_scale) in scales.iter().enumerate() {
        let range = row * hidden..(row + 1) * hidden;
        let more = |i: usize| if with_delta { f64_of(delta[i]) as f32 } else { 0.0 };
        let sum: Vec<f32> = range.clone().map(|i| before[i] + more(i)).collect();
        assert_eq!(&after[range.clone()], &sum[..], "residual of row {row}, {rows}x{hidden}");
        let (want, scale) = norm_oracle(&sum, &weight, eps);
        let case = format!("row {row}, {rows}x{hidden}");
        if scale_left_out {
            assert!((f64::from(own_scale) / scale - 1.0).abs() < 1e-5, "scale of {case}");
            let undivided: Vec<f64> = want.iter().map(|x| x / scale).collect();
            assert_close(&got[range], &undivided, &case);
        } else {
            assert!(own_scale.is_nan(), "the scale is not asked for: {case}");
            assert_close(&got[range], &want, &case);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn rmsnorm_gathers_the_rows_that_need_logits_and_leaves_the_residual() {
    let mut bench = Bench::new();
    for hidden in [384, 4096] {
        let (rows, eps) = (40, 1e-6);
        let before = bench.random.f32s(rows * hidden, 2.0);
        let delta = bench.random.bf16s(rows * hidden, 1.0);
        let weight = bench.random.bf16s(hidden, 1.0);
        let gather = [39, 0, -1, 7, 7];
        let mut residual = bench.upload(&before);
        let (delta_on, weight_on) = (bench.upload(&delta), bench.upload(&weight));
        let gather_on = bench.upload(&gather);
        for naive in [false, true] {
            let mut out = bench.poisoned::<u16>(gather.len() * hidden);
            let params = RmsNormParams {
                residual: residual.mut_ptr(),
                delta: delta_on.ptr(),
                weight: weight_on.ptr(),
                out: out.mut_ptr(),
                gather: gather_on.ptr(),
                scales: std::ptr::null_mut(),
                eps,
                rows: gather.len() as i32,
                hidden: hidden as i32,
            };
            launch!(naive, &params, bench.stream, specserve_rmsnorm, specserve_rmsnorm_naive);
            let got = bench.download(&out);
            for (i, &row) in gather.iter().enumerate() {
                let got = &got[i * hidden..(i + 1) * hidden];
                if row < 0 {
                    assert!(got.iter().all(|&x| x == 0));
                    continue;
                }
                let at = row as usize * hidden;
                let sum: Vec<f32> = (at..at + hidden).map(|j| before[j] + f64_of(delta[j]) as f32).collect();
                assert_close(got, &norm_oracle(&sum, &weight, eps).0, "gathered row");
            }
            assert_eq!(bench.download(&residual), before);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn swiglu_multiplies_the_gate_s_silu_with_up() {
    let mut bench = Bench::new();
    for (rows, width) in ROWS.into_iter().flat_map(|r| [384, 1024, 4864, 14336].map(|w| (r, w))) {
        if bench.leaves_out(rows * width) {
            continue;
        }
        let input = bench.random.bf16s(rows * 2 * width, 2.0);
        let scales: Vec<f32> = bench.random.f32s(rows, 1.0);
        let (on_device, scales_on) = (bench.upload(&input), bench.upload(&scales));
        for (naive, scaled) in [(false, false), (false, true), (true, true)] {
            let mut out = bench.poisoned::<u16>(rows * width);
            let params = SwigluParams {
                scales: if scaled { scales_on.ptr() } else { std::ptr::null() },
                gate_up: on_device.ptr(),
                out: out.mut_ptr(),
                rows: rows as i32,
                width: width as i32,
            };
            launch!(naive, &params, bench.stream, specserve_swiglu, specserve_swiglu_naive);
            let got = bench.download(&out);
            for row in 0..rows {
                let (gate, up) = input[row * 2 * width..(row + 1) * 2 * width].split_at(width);
                let silu = |x: f64| x / (1.0 + (-x).exp());
                let scale = if scaled { f64::from(scales[row]) } else { 1.0 };
                let want: Vec<f64> = gate
                    .iter()
                    .zip(up)
                    .map(|(&g, &u)| silu(f64_of(g) * scale) * (f64_of(u) * scale))
                    .collect();
                assert_close(&got[row * width..(row + 1) * width], &want, &format!("{rows}x{width}"));
            }
        }
    }
}

/// The shape and options of one QKV case.
#[derive(Clone, Copy, Debug)]
struct QkvCase {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    bias: bool,
    norm: bool,
    scaled: bool,
}

#[test]
#[ignore = "needs a CUDA device"]
fn qkv_rotates_and_writes_the_cache_and_leaves_padding_alone() {
    let mut bench = Bench::new();
    for rows in ROWS {
        for head_dim in [64, 128] {
            for (heads, kv_heads) in [(2, 1), (6, 2), (8, 8), (8, 1), (14, 2), (32, 8)] {
                if bench.leaves_out(rows * heads * head_dim) {
                    continue;
                }
                let options = bench.random.below(8);
                let (bias, norm, scaled) = (options & 1 == 1, options & 2 == 2, options & 4 == 4);
                let case = QkvCase { rows, heads, kv_heads, head_dim, bias, norm, scaled };
                check_qkv(&mut bench, case, false);
                check_qkv(&mut bench, case, true);
            }
        }
    }
}

fn check_qkv(bench: &mut Bench, case: QkvCase, naive: bool) {
    let QkvCase { rows, heads, kv_heads, head_dim, .. } = case;
    let (eps, positions_max) = (1e-6, 40_000);
    let heads_all = heads + 2 * kv_heads;
    let rope = Rope { theta: 500_000.0, scaling: RopeScaling::Default };
    let frequencies = rope.inverse_frequencies(head_dim);
    let positions: Vec<i32> = (0..rows).map(|_| bench.random.below(positions_max) as i32).collect();
    let blocks = rows.div_ceil(BLOCK_TOKENS) * 2 + 1;
    let slots = scattered_slots(bench, rows, blocks);
    let qkv = bench.random.bf16s(rows * heads_all * head_dim, 2.0);
    let bias = bench.random.bf16s(heads_all * head_dim, 1.0);
    let scales = bench.random.f32s(rows, 1.0);
    let scales_on = bench.upload(&scales);
    let (q_norm, k_norm) = (bench.random.bf16s(head_dim, 1.0), bench.random.bf16s(head_dim, 1.0));

    let table: Vec<f32> = (0..positions_max)
        .flat_map(|p| frequencies.iter().map(move |f| p as f64 * f))
        .flat_map(|angle| [angle.cos() as f32, angle.sin() as f32])
        .collect();
    let mut on_device = bench.upload(&qkv);
    let mut pool = bench.poisoned::<u16>(blocks * kv_heads * 2 * BLOCK_TOKENS * head_dim);
    let (bias_on, q_norm_on, k_norm_on) = (bench.upload(&bias), bench.upload(&q_norm), bench.upload(&k_norm));
    let (table_on, positions_on, slots_on) =
        (bench.upload(&table), bench.upload(&positions), bench.upload(&slots));
    let or_null = |on: bool, ptr| if on { ptr } else { std::ptr::null() };
    let params = QkvParams {
        scales: if case.scaled { scales_on.ptr() } else { std::ptr::null() },
        qkv: on_device.mut_ptr(),
        bias: or_null(case.bias, bias_on.ptr()),
        q_norm: or_null(case.norm, q_norm_on.ptr()),
        k_norm: or_null(case.norm, k_norm_on.ptr()),
        rotations: table_on.ptr(),
        positions: positions_on.ptr(),
        slots: slots_on.ptr(),
        kv: pool.mut_ptr(),
        eps,
        rows: rows as i32,
        heads: heads as i32,
        kv_heads: kv_heads as i32,
        head_dim: head_dim as i32,
    };
    launch!(naive, &params, bench.stream, specserve_qkv, specserve_qkv_naive);
    let (after, cache) = (bench.download(&on_device), bench.download(&pool));

    let mut written = 0;
    for row in 0..rows {
        for head in 0..heads_all {
            let at = (row * heads_all + head) * head_dim;
            let raw = &qkv[at..at + head_dim];
            let is_query = head < heads;
            if slots[row] < 0 || !is_query {
                assert_eq!(&after[at..at + head_dim], raw, "only queries of real rows change: {case:?}");
            }
            if slots[row] < 0 {
                continue;
            }
            let with_bias: Vec<f64> = (0..head_dim)
                .map(|i| {
                    let value = f64_of(raw[i]) * if case.scaled { f64::from(scales[row]) } else { 1.0 };
                    value + if case.bias { f64_of(bias[head * head_dim + i]) } else { 0.0 }
                })
                .collect();
            let is_value = head >= heads + kv_heads;
            let weight = case.norm.then_some(if is_query { &q_norm } else { &k_norm }).filter(|_| !is_value);
            let normed = weight.map_or(with_bias.clone(), |weight| {
                let mean = with_bias.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                with_bias.iter().zip(weight).map(|(x, &w)| x * scale * f64_of(w)).collect()
            });
            let want =
                if is_value { normed } else { rotated(&normed, &frequencies, f64::from(positions[row])) };
            let got = if is_query {
                &after[at..at + head_dim]
            } else {
                written += head_dim;
                let kv_head = (head - heads) % kv_heads;
                let (block, slot) = (slots[row] as usize / BLOCK_TOKENS, slots[row] as usize % BLOCK_TOKENS);
                let tokens = if is_value { BLOCK_TOKENS + slot } else { slot };
                let from = ((block * kv_heads + kv_head) * 2 * BLOCK_TOKENS + tokens) * head_dim;
                &cache[from..from + head_dim]
            };
            assert_close(got, &want, &format!("row {row}, head {head}, {case:?}"));
        }
    }
    let touched = cache.iter().filter(|&&x| x != POISON).count();
    assert_eq!(touched, written, "only the rows' slots are written: {case:?}");
}

/// Distinct slots scattered over the pool, some of them padding.
fn scattered_slots(bench: &mut Bench, rows: usize, blocks: usize) -> Vec<i32> {
    let mut slots: Vec<i32> = (0..(blocks * BLOCK_TOKENS) as i32).collect();
    for i in (1..slots.len()).rev() {
        slots.swap(i, bench.random.below(i + 1));
    }
    slots.truncate(rows);
    for slot in slots.iter_mut().skip(1).step_by(5) {
        *slot = -1;
    }
    slots
}

fn rotated(head: &[f64], frequencies: &[f64], position: f64) -> Vec<f64> {
    let half = frequencies.len();
    let mut out = vec![0.0; 2 * half];
    for i in 0..half {
        let (sine, cosine) = (position * frequencies[i]).sin_cos();
        out[i] = head[i] * cosine - head[i + half] * sine;
        out[i + half] = head[i + half] * cosine + head[i] * sine;
    }
    out
}

#[test]
#[ignore = "needs a CUDA device"]
fn compaction_moves_overlapping_paths_in_every_layer() {
    let mut bench = Bench::new();
    for head_dim in [64, 128] {
        for (sequences, layers, kv_heads) in [(1, 1, 1), (3, 6, 2), (17, 4, 8)] {
            check_compaction(&mut bench, sequences, layers, kv_heads, head_dim);
        }
    }
}

fn check_compaction(bench: &mut Bench, sequences: usize, layers: usize, kv_heads: usize, head_dim: usize) {
    const PATH_MAX: usize = kernels::KV_PATH_MAX as usize;
    const BLOCKS_EACH: usize = 8;
    let blocks = sequences * BLOCKS_EACH;
    let layer_elements = blocks * kv_heads * 2 * BLOCK_TOKENS * head_dim;
    let pool: Vec<u16> = bench.random.bf16s(layers * layer_elements, 1.0);
    let mut tables: Vec<i32> = (0..blocks as i32).collect();
    for i in (1..blocks).rev() {
        tables.swap(i, bench.random.below(i + 1));
    }
    let table: Vec<i32> = (0..sequences).map(|s| (s * BLOCKS_EACH) as i32).collect();
    let first: Vec<i32> = (0..sequences).map(|_| bench.random.below(40) as i32).collect();
    let mut path = vec![-1; sequences * PATH_MAX];
    let mut lengths = Vec::new();
    for sequence in 0..sequences {
        // A random ascending subset of the 64 drafts, including the empty and the full one.
        let keep = [0.0, 1.1, 0.1, 0.5, 0.9][sequence % 5];
        let drafts: Vec<i32> = (0..PATH_MAX as i32).filter(|_| bench.random.uniform() < keep).collect();
        path[sequence * PATH_MAX..sequence * PATH_MAX + drafts.len()].copy_from_slice(&drafts);
        lengths.push(drafts.len() as i32);
    }

    let mut want = pool.clone();
    let element = |layer: usize, sequence: usize, position: i32, head: usize, value: usize| {
        let block = tables[sequence * BLOCKS_EACH + position as usize / BLOCK_TOKENS] as usize;
        let token = value * BLOCK_TOKENS + position as usize % BLOCK_TOKENS;
        layer * layer_elements + ((block * kv_heads + head) * 2 * BLOCK_TOKENS + token) * head_dim
    };
    for sequence in 0..sequences {
        for i in 0..lengths[sequence] {
            let from = first[sequence] + path[sequence * PATH_MAX + i as usize];
            for (layer, head, value) in
                (0..layers).flat_map(|l| (0..kv_heads).flat_map(move |h| [(l, h, 0), (l, h, 1)]))
            {
                let source = element(layer, sequence, from, head, value);
                let target = element(layer, sequence, first[sequence] + i, head, value);
                want[target..target + head_dim].copy_from_slice(&pool[source..source + head_dim]);
            }
        }
    }
    let (tables_on, table_on, first_on) = (bench.upload(&tables), bench.upload(&table), bench.upload(&first));
    let (path_on, lengths_on) = (bench.upload(&path), bench.upload(&lengths));
    for naive in [false, true] {
        let mut kv = bench.upload(&pool);
        let params = CompactParams {
            kv: kv.mut_ptr(),
            layer_elements: layer_elements as i64,
            tables: tables_on.ptr(),
            table: table_on.ptr(),
            first: first_on.ptr(),
            path: path_on.ptr(),
            path_length: lengths_on.ptr(),
            sequences: sequences as i32,
            layers: layers as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
        };
        launch!(naive, &params, bench.stream, specserve_compact, specserve_compact_naive);
        assert!(bench.download(&kv) == want, "{sequences} sequences, {layers} layers, naive {naive}");
    }
}
