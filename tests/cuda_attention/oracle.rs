//! Double-precision oracle of the attention kernels, and the harness that runs them.

use half::bf16;
use specserve::executor::cuda::attention_plan::AttentionRoom;
use specserve::executor::cuda::{CudaError, Stream};
use specserve::protocol::BLOCK_TOKENS;

use crate::case::{Case, Kernel, Problem, Sequence, vector_offset};

impl Case {
    /// A case with small tiles, or large ones if the queries do not fit a small one.
    pub fn tiled(problem: &Problem, large: bool, stream: &Stream) -> Result<Case, CudaError> {
        let longest = problem.sequences.iter().map(Sequence::end).max().unwrap_or(1);
        let room = AttentionRoom::for_rows(problem.heads.query, problem.heads.kv, problem.rows(), longest);
        let small_items_max = if large { 0 } else { usize::MAX };
        Case::planned(problem, AttentionRoom { small_items_max, ..room }, stream)
    }

    /// Runs into a poisoned output and reads it.
    pub fn run(&mut self, kernel: Kernel, stream: &Stream) -> Result<Vec<u16>, CudaError> {
        self.out.fill(0xff, stream)?;
        self.launch(kernel, stream)?;
        self.out.to_vec(stream)
    }
}

impl Problem {
    /// One sequence of this problem alone, with the same numbers in the same blocks.
    pub fn alone(&self, index: usize) -> Problem {
        let row = self.first_row(index) * self.width();
        Problem {
            sequences: vec![self.sequences[index].clone()],
            blocks: vec![self.blocks[index].clone()],
            q: self.q[row..row + self.sequences[index].tokens * self.width()].to_vec(),
            ..self.clone()
        }
    }

    pub fn first_row(&self, index: usize) -> usize {
        self.sequences[..index].iter().map(|sequence| sequence.tokens).sum()
    }

    /// Numbers of one row of queries or output.
    pub fn width(&self) -> usize {
        self.heads.query * self.heads.dim
    }

    /// One head's output of one row, in double precision.
    pub fn oracle(&self, sequence: usize, query: usize, head: usize) -> Vec<f64> {
        let dim = self.heads.dim;
        let kv_head = head / (self.heads.query / self.heads.kv);
        let row = (self.first_row(sequence) + query) * self.width() + head * dim;
        let q = &self.q[row..row + dim];
        let seen: Vec<usize> =
            (0..self.sequences[sequence].end()).filter(|&p| self.sees(sequence, query, p)).collect();
        let scores: Vec<f64> = seen
            .iter()
            .map(|&p| dot(q, self.vector(sequence, p, kv_head, 0)) / (dim as f64).sqrt())
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - top).exp()).sum();
        let mut out = vec![0.0; dim];
        for (&position, score) in seen.iter().zip(&scores) {
            let weight = (score - top).exp() / sum;
            for (to, &value) in out.iter_mut().zip(self.vector(sequence, position, kv_head, 1)) {
                *to += weight * f64::from(bf16::from_bits(value));
            }
        }
        out
    }

    fn sees(&self, sequence: usize, query: usize, position: usize) -> bool {
        let shape = &self.sequences[sequence];
        let start = shape.start as usize;
        let committed = shape.tokens - shape.drafts;
        let Some(parents) = &shape.tree else { return position <= start + query };
        if query < committed || position < start + committed {
            return position <= start + query;
        }
        let mut at = query - committed;
        loop {
            if position == start + committed + at {
                return true;
            }
            match parents[at] {
                0 => return false,
                parent => at = parent as usize - 1,
            }
        }
    }

    /// A key (`which` 0) or a value (1).
    fn vector(&self, sequence: usize, position: usize, kv_head: usize, which: usize) -> &[u16] {
        let tokens = BLOCK_TOKENS as usize;
        let block = self.blocks[sequence][position / tokens].index();
        let at = vector_offset(self.heads, block, kv_head, which, position % tokens);
        &self.kv[at..at + self.heads.dim]
    }
}

fn dot(a: &[u16], b: &[u16]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(bf16::from_bits(a)) * f64::from(bf16::from_bits(b))).sum()
}
