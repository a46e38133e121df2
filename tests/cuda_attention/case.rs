//! A paged attention problem on the device: random queries, keys and values in scattered
//! blocks, everything else poisoned.

use bytemuck::Pod;
use half::bf16;
use specserve::executor::cuda::attention_plan::{AttentionPlan, AttentionRoom, SequenceShape};
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{self, AttentionItem, AttentionParams, AttentionSegment};
use specserve::executor::cuda::{CudaError, DeviceBuffer, Stream};
use specserve::protocol::{BLOCK_TOKENS, BlockId};

/// Poison: unwritten values show up as NaN.
pub const POISON: u16 = 0xffff;

/// Head configuration of a model.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub query: usize,
    pub kv: usize,
    pub dim: usize,
}

/// One sequence of a case.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub start: u32,
    pub tokens: usize,
    pub drafts: usize,
    pub tree: Option<Vec<u32>>,
}

impl Sequence {
    pub fn chain(start: u32, tokens: usize) -> Sequence {
        Sequence { start, tokens, drafts: 0, tree: None }
    }

    pub fn end(&self) -> usize {
        self.start as usize + self.tokens
    }
}

/// Xorshift64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// An approximately normal variate with variance 1.
    pub fn normal(&mut self) -> f32 {
        let bits = self.next();
        let parts = (0..4).map(|i| ((bits >> (16 * i)) & 0xffff) as f32 / 65_536.0 - 0.5);
        parts.sum::<f32>() * 1.732
    }

    pub fn bf16(&mut self) -> u16 {
        bf16::from_f32(self.normal()).to_bits()
    }
}

/// The kernel under test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    Fast,
    /// The fast kernel's variant for devices with little shared memory.
    FewStages,
    Naive,
}

/// Ring stages of the decode kernel: as many as fit, and few.
const STAGES: [i32; 2] = [0, kernels::ATTENTION_STAGES_FEW as i32];

/// A problem on the host: sequences, their blocks and all values.
#[derive(Clone)]
pub struct Problem {
    pub heads: Heads,
    pub sequences: Vec<Sequence>,
    /// Block table of each sequence.
    pub blocks: Vec<Vec<BlockId>>,
    /// bf16 `[rows][heads * dim]`.
    pub q: Vec<u16>,
    /// The whole pool, one layer.
    pub kv: Vec<u16>,
}

/// A problem on the device.
pub struct Case {
    heads: Heads,
    pub plan: AttentionPlan,
    pub out: DeviceBuffer<u16>,
    device: Device,
}

struct Device {
    q: DeviceBuffer<u16>,
    kv: DeviceBuffer<u16>,
    segments: DeviceBuffer<i32>,
    items: DeviceBuffer<i32>,
    prefill_items: DeviceBuffer<i32>,
    item_count: DeviceBuffer<i32>,
    masks: DeviceBuffer<u64>,
    tables: DeviceBuffer<i32>,
    partial_out: DeviceBuffer<f32>,
    partial_stats: DeviceBuffer<f32>,
    merges: DeviceBuffer<i32>,
    /// Thread blocks of the decode kernel, by stages, then by tile.
    ctas: [[i32; 2]; 2],
}

impl Problem {
    /// Generates random values. The pool has twice the needed blocks, assigned in
    /// random order; slots that no sequence uses are NaN.
    pub fn new(heads: Heads, sequences: Vec<Sequence>, seed: u64) -> Problem {
        let mut random = Random::new(seed);
        let blocks = scatter(&sequences, &mut random);
        let rows: usize = sequences.iter().map(|sequence| sequence.tokens).sum();
        let q = (0..rows * heads.query * heads.dim).map(|_| random.bf16()).collect();
        let kv = pool(heads, &sequences, &blocks, &mut random);
        Problem { heads, sequences, blocks, q, kv }
    }

    /// Query rows of all sequences.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens).sum()
    }
}

impl Case {
    /// Plans a problem and copies it to the device.
    pub fn new(problem: &Problem, stream: &Stream) -> Result<Case, CudaError> {
        let heads = problem.heads;
        let longest = problem.sequences.iter().map(Sequence::end).max().unwrap_or(1);
        let room = AttentionRoom::for_rows(heads.query, heads.kv, problem.rows(), longest);
        Case::planned(problem, room, stream)
    }

    /// The same with a plan capacity given by the caller.
    pub fn planned(problem: &Problem, room: AttentionRoom, stream: &Stream) -> Result<Case, CudaError> {
        let heads = problem.heads;
        let mut plan = AttentionPlan::new(room);
        plan.build(problem.sequences.iter().zip(&problem.blocks).map(|(sequence, blocks)| SequenceShape {
            start: sequence.start,
            tokens: sequence.tokens,
            drafts: sequence.drafts,
            tree: sequence.tree.as_deref(),
            cached: 0,
            blocks,
        }));
        let device = Device::new(problem, &plan, room, stream)?;
        let out = DeviceBuffer::filled(0xff, problem.q.len(), stream)?;
        Ok(Case { heads, plan, out, device })
    }

    fn params(&mut self) -> AttentionParams {
        let width = (self.heads.query * self.heads.dim) as i64;
        let device = &mut self.device;
        AttentionParams {
            q: device.q.ptr(),
            out: self.out.mut_ptr(),
            kv: device.kv.ptr(),
            segments: device.segments.ptr().cast(),
            items: device.items.ptr().cast(),
            item_count: device.item_count.ptr(),
            masks: device.masks.ptr(),
            tables: device.tables.ptr(),
            partial_out: device.partial_out.mut_ptr(),
            partial_stats: device.partial_stats.mut_ptr(),
            merges: device.merges.ptr().cast(),
            q_stride: width,
            scale: 1.0 / (self.heads.dim as f32).sqrt(),
            heads: self.heads.query as i32,
            kv_heads: self.heads.kv as i32,
            head_dim: self.heads.dim as i32,
        }
    }

    /// Enqueues the whole case.
    pub fn launch(&mut self, kernel: Kernel, stream: &Stream) -> Result<(), CudaError> {
        let params = self.params();
        match kernel {
            Kernel::Fast => self.launch_fast(&params, 0, stream),
            Kernel::FewStages => self.launch_fast(&params, 1, stream),
            Kernel::Naive => self.launch_naive(&params, stream),
        }
    }

    /// `stages` counts in [`STAGES`].
    fn launch_fast(&self, params: &AttentionParams, stages: usize, stream: &Stream) -> Result<(), CudaError> {
        let large = i32::from(self.plan.large);
        if !self.plan.items.is_empty() {
            let ctas = self.device.ctas[stages][large as usize];
            let (stages, raw) = (STAGES[stages], stream.raw());
            // SAFETY: all pointers are this case's device buffers, sized by its plan.
            let status = unsafe { kernels::specserve_attention_decode(params, large, ctas, stages, raw) };
            check_launch(status, "attention_decode")?;
        }
        if !self.plan.merges.is_empty() {
            // SAFETY: as above.
            let status = unsafe { kernels::specserve_attention_merge(params, large, stream.raw()) };
            check_launch(status, "attention_merge")?;
        }
        if !self.plan.prefill_items.is_empty() {
            let params = AttentionParams { items: self.device.prefill_items.ptr().cast(), ..*params };
            let count = self.plan.prefill_items.len() as i32;
            // SAFETY: as above.
            let status = unsafe { kernels::specserve_attention_prefill(&params, count, stream.raw()) };
            check_launch(status, "attention_prefill")?;
        }
        Ok(())
    }

    fn launch_naive(&self, params: &AttentionParams, stream: &Stream) -> Result<(), CudaError> {
        let segments = &self.plan.segments;
        let most = segments.iter().map(|segment| segment.queries).max().unwrap_or(0);
        let causal = i32::from(!self.plan.prefill_items.is_empty());
        let count = segments.len() as i32;
        // SAFETY: as in `launch_fast`.
        let status = unsafe { kernels::specserve_attention_naive(params, count, most, causal, stream.raw()) };
        check_launch(status, "attention_naive")
    }
}

/// Offset of a key (`which` 0) or value (1) in the pool.
pub fn vector_offset(heads: Heads, block: usize, kv_head: usize, which: usize, token: usize) -> usize {
    (((block * heads.kv + kv_head) * 2 + which) * BLOCK_TOKENS as usize + token) * heads.dim
}

fn scatter(sequences: &[Sequence], random: &mut Random) -> Vec<Vec<BlockId>> {
    let needed: Vec<usize> =
        sequences.iter().map(|sequence| sequence.end().div_ceil(BLOCK_TOKENS as usize)).collect();
    let mut free: Vec<BlockId> = (0..2 * needed.iter().sum::<usize>() as u32).map(BlockId).collect();
    for index in (1..free.len()).rev() {
        free.swap(index, random.below(index + 1));
    }
    needed.iter().map(|&count| free.split_off(free.len() - count)).collect()
}

fn pool(heads: Heads, sequences: &[Sequence], blocks: &[Vec<BlockId>], random: &mut Random) -> Vec<u16> {
    let count = 2 * blocks.iter().map(Vec::len).sum::<usize>();
    let mut kv = vec![POISON; count * heads.kv * 2 * BLOCK_TOKENS as usize * heads.dim];
    // A long table of numbers, read from random offsets: generating each one is slow.
    let numbers: Vec<u16> = (0..1 << 16).map(|_| random.bf16()).collect();
    for (sequence, blocks) in sequences.iter().zip(blocks) {
        for position in 0..sequence.end() {
            let block = blocks[position / BLOCK_TOKENS as usize].index();
            for part in 0..2 * heads.kv {
                let token = position % BLOCK_TOKENS as usize;
                let at = vector_offset(heads, block, part / 2, part % 2, token);
                let from = random.below(numbers.len() - heads.dim);
                kv[at..at + heads.dim].copy_from_slice(&numbers[from..from + heads.dim]);
            }
        }
    }
    kv
}

impl Device {
    fn new(
        problem: &Problem,
        plan: &AttentionPlan,
        room: AttentionRoom,
        stream: &Stream,
    ) -> Result<Device, CudaError> {
        let heads = problem.heads;
        let ctas = STAGES.map(|stages| {
            [0, 1].map(|large| {
                // SAFETY: reads properties of the current device.
                unsafe { kernels::specserve_attention_decode_ctas(heads.dim as i32, large, stages) }
            })
        });
        // The kernel may read an item for each of its CTAs.
        let mut items: Vec<i32> = plan.items.iter().flat_map(item_words).collect();
        items.resize(items.len() + 12 * 1024, 0);
        Ok(Device {
            q: DeviceBuffer::from_slice(&problem.q, stream)?,
            kv: DeviceBuffer::from_slice(&problem.kv, stream)?,
            segments: words(&plan.segments.iter().flat_map(segment_words).collect::<Vec<_>>(), stream)?,
            items: words(&items, stream)?,
            prefill_items: words(
                &plan.prefill_items.iter().flat_map(item_words).collect::<Vec<_>>(),
                stream,
            )?,
            item_count: words(&[plan.items.len() as i32, plan.merges.len() as i32], stream)?,
            masks: words(&plan.masks, stream)?,
            tables: words(&plan.tables, stream)?,
            partial_out: DeviceBuffer::filled(0xff, room.partial_rows * heads.dim, stream)?,
            partial_stats: DeviceBuffer::filled(0xff, room.partial_rows * 2, stream)?,
            merges: words(&plan.merges.iter().flat_map(item_words).collect::<Vec<_>>(), stream)?,
            ctas,
        })
    }
}

fn words<T: Pod>(values: &[T], stream: &Stream) -> Result<DeviceBuffer<T>, CudaError> {
    DeviceBuffer::from_slice(values, stream)
}

fn segment_words(s: &AttentionSegment) -> [i32; 4] {
    [s.first_row, s.queries, s.start, s.table]
}

fn item_words(i: &AttentionItem) -> [i32; 12] {
    let s = i.segment;
    let work = [i.tile, i.kv_begin, i.kv_end, i.chunk, i.chunks, i.partial, i.gathered, 0];
    let mut words = [0; 12];
    words[..4].copy_from_slice(&[s.first_row, s.queries, s.start, s.table]);
    words[4..].copy_from_slice(&work);
    words
}
