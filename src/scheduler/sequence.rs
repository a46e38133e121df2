//! A request in progress.

use super::rows::RowPool;
use crate::kv::{BlockPool, BlockTable};
use crate::pacing::{Prompt, Standing};
use crate::protocol::{
    BLOCK_TOKENS, DecodeView, FinishReason, GenerationRequest, History, Micros, PrefillView, RequestSummary,
    RequestTimes, SequenceInput, SpeculationStats, Termination, TokenEvent, TokenId, blocks_for,
};

/// One model's cache of one sequence.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Its blocks.
    pub table: BlockTable,
    /// Leading tokens whose keys and values are in the cache for good.
    pub computed: u32,
}

impl Cache {
    /// Gives everything back.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.table.release(pool);
        self.computed = 0;
    }

    /// Moves the mark after a step: keeps `computed` tokens, gives back blocks that a
    /// sequence of `tokens` tokens does not need.
    pub fn settle(&mut self, pool: &mut BlockPool, tokens: u32, computed: u32) {
        self.computed = computed;
        self.table.shrink(pool, tokens);
    }

    /// Makes full blocks findable.
    pub fn publish(&mut self, pool: &mut BlockPool, tokens: &[TokenId]) {
        self.table.publish(pool, tokens, self.computed);
    }
}

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub request: GenerationRequest,
    /// Prompt and output: all committed tokens.
    pub tokens: Vec<TokenId>,
    pub target: Cache,
    pub draft: Cache,
    /// Set when the request was ended while a step was in flight.
    pub pending_end: Option<Termination>,
    scheduled: Option<Micros>,
    first_token: Option<Micros>,
    last_token: Micros,
    pub speculation: SpeculationStats,
    pub preemptions: u32,
    /// Prompt tokens that the prefix cache held when it was first taken into the running set.
    pub cached_tokens: Option<u32>,
    /// Its turn among the prompts that are prefilled, and where it stands, if there is a pacer.
    pub rank: u32,
    pub standing: Standing,
}

impl Sequence {
    pub fn new(request: GenerationRequest) -> Sequence {
        Sequence {
            tokens: request.prompt.to_vec(),
            request,
            target: Cache::default(),
            draft: Cache::default(),
            pending_end: None,
            scheduled: None,
            first_token: None,
            last_token: Micros::ZERO,
            speculation: SpeculationStats::default(),
            preemptions: 0,
            cached_tokens: None,
            rank: 0,
            standing: Standing::default(),
        }
    }

    /// Committed tokens.
    pub fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Output tokens so far.
    pub fn output_tokens(&self) -> u32 {
        self.len() - self.request.prompt.len() as u32
    }

    /// Committed tokens that the target has not seen; at least one.
    pub fn remaining(&self) -> u32 {
        self.len() - self.target.computed
    }

    /// Whether the next step decodes; else it prefills.
    pub fn decodes(&self) -> bool {
        self.output_tokens() > 0 && self.remaining() == 1
    }

    /// Who goes first, ascending.
    pub fn urgency(&self) -> (u8, Micros, u64) {
        (self.request.class, self.request.arrival, self.request.id.0)
    }

    /// Tokens that the cache must hold for any progress in the next step.
    pub fn minimum_tokens(&self) -> u32 {
        self.target.computed + self.remaining().min(BLOCK_TOKENS)
    }

    /// Blocks that this sequence still lacks to finish its prefill and say one token.
    pub fn prefill_blocks_lacking(&self) -> u32 {
        if self.decodes() {
            return 0;
        }
        blocks_for(self.len() + 1).saturating_sub(self.target.table.blocks().len() as u32)
    }

    /// Whether any step included the sequence.
    pub fn has_started(&self) -> bool {
        self.scheduled.is_some()
    }

    /// Notes that a step includes the sequence; true for the first time.
    pub fn mark_scheduled(&mut self, now: Micros) -> bool {
        let first = self.scheduled.is_none();
        self.scheduled.get_or_insert(now);
        first
    }

    /// Input for the target: committed tokens `[start, end)`, with room for `drafts` more.
    pub fn target_input(&self, rows: &mut RowPool, start: u32, end: u32, drafts: u32) -> SequenceInput {
        self.input(rows.take(self.request.id), &self.target, [start, end], drafts)
    }

    /// Input for the drafter, which has the blocks of `cache`: committed tokens `[start, end)`, with
    /// all of them where it needs them.
    pub fn draft_input(
        &self,
        rows: &mut RowPool,
        cache: &Cache,
        [start, end]: [u32; 2],
        with_tokens: bool,
    ) -> SequenceInput {
        let mut input = self.input(rows.take(self.request.id), cache, [start, end], 0);
        if with_tokens {
            self.write_history(&mut input.history, end);
        }
        input
    }

    /// A row, made from the one that this request had before if there is one. What is right
    /// already is not written again: another core has it in its cache.
    fn input(
        &self,
        before: Option<SequenceInput>,
        cache: &Cache,
        [start, end]: [u32; 2],
        drafts: u32,
    ) -> SequenceInput {
        let mut input = before.unwrap_or_else(|| SequenceInput {
            request: self.request.id,
            tokens: Vec::new(),
            start,
            blocks: Vec::new(),
            sampling: self.request.sampling.clone(),
            history: None,
        });
        debug_assert_eq!(input.request, self.request.id);
        let committed = &self.tokens[start as usize..end as usize];
        input.start = start;
        input.tokens.clear();
        input.tokens.reserve_exact(committed.len() + drafts as usize);
        input.tokens.extend_from_slice(committed);
        if input.blocks != cache.table.blocks() {
            input.blocks.clear();
            input.blocks.extend_from_slice(cache.table.blocks());
        }
        if self.request.sampling.needs_history() {
            self.write_history(&mut input.history, end);
        }
        input
    }

    /// Committed tokens never change, so what is there is a prefix of what is wanted, or longer.
    fn write_history(&self, history: &mut Option<History>, end: u32) {
        let history = history.get_or_insert_with(|| History { tokens: Vec::new(), prompt_tokens: 0 });
        history.tokens.truncate(end as usize);
        let known = history.tokens.len();
        history.tokens.extend_from_slice(&self.tokens[known..end as usize]);
        history.prompt_tokens = (self.request.prompt.len() as u32).min(end);
    }

    /// As a policy sees it while it decodes.
    pub fn decode_view(&self, now: Micros, drafts_max: u32, draft_lag_tokens: u32) -> DecodeView {
        DecodeView {
            request: self.request.id,
            context_tokens: self.len(),
            output_tokens: self.output_tokens(),
            since_first_token: now.saturating_sub(self.first_token.unwrap_or(now)),
            tpot: self.request.slo.tpot,
            weight: self.request.weight,
            draft_lag_tokens,
            drafts_max,
            temperature: self.request.sampling.temperature,
        }
    }

    /// As a policy sees it while it prefills.
    pub fn prefill_view(&self, now: Micros) -> PrefillView {
        PrefillView {
            request: self.request.id,
            done_tokens: self.target.computed,
            remaining_tokens: self.remaining(),
            since_arrival: now.saturating_sub(self.request.arrival),
            ttft: self.request.slo.ttft.filter(|_| self.first_token.is_none()),
        }
    }

    /// As the pacer sees it while it prefills or waits.
    pub fn prompt(&self) -> Prompt {
        let due = |ttft| Micros(self.request.arrival.0.saturating_add(ttft));
        Prompt {
            class: self.request.class,
            arrival: self.request.arrival,
            done_tokens: self.target.computed,
            remaining_tokens: self.remaining(),
            deadline: self.request.slo.ttft.filter(|_| self.first_token.is_none()).map(|ttft| due(ttft.0)),
            resumes: self.first_token.is_some(),
        }
    }

    /// Most drafts that can still be of use: one token of every step is the target's own.
    pub fn drafts_useful(&self) -> u32 {
        (self.request.max_tokens - self.output_tokens()).saturating_sub(1)
    }

    /// Appends what a step chose, up to the end of the output. Returns the tokens to send
    /// and, if the output is complete, why.
    pub fn append(&mut self, mut chosen: Vec<TokenId>, now: Micros) -> (Vec<TokenId>, Option<FinishReason>) {
        if chosen.is_empty() {
            return (chosen, None);
        }
        let room = (self.request.max_tokens - self.output_tokens()) as usize;
        chosen.truncate(room);
        let stop = chosen.iter().position(|token| self.request.stop_tokens.contains(token));
        if let Some(last) = stop {
            chosen.truncate(last + 1);
        }
        let finish = match stop {
            Some(_) => Some(FinishReason::Stop),
            None => (chosen.len() == room).then_some(FinishReason::Length),
        };
        self.tokens.extend_from_slice(&chosen);
        self.first_token.get_or_insert(now);
        self.last_token = now;
        (chosen, finish)
    }

    /// The terminal event of a request that was ended from outside.
    pub fn ended(&self, ending: Termination) -> TokenEvent {
        match ending {
            Termination::Stopped => {
                TokenEvent::Finished { reason: FinishReason::Stop, summary: self.summary() }
            }
            Termination::Failed(failure) => TokenEvent::Failed(failure),
        }
    }

    /// Closing figures.
    pub fn summary(&self) -> RequestSummary {
        RequestSummary {
            prompt_tokens: self.request.prompt.len() as u32,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            output_tokens: self.output_tokens(),
            times: RequestTimes {
                arrival: self.request.arrival,
                scheduled: self.scheduled.unwrap_or_default(),
                first_token: self.first_token.unwrap_or_default(),
                last_token: self.last_token,
            },
            speculation: self.speculation.clone(),
            preemptions: self.preemptions,
        }
    }
}
