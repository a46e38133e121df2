//! Admission in the order of the pacer: by slack, within a limit that follows the objectives.
//!
//! Prompts that run and prompts that wait are ranked together before every step. Those that wait
//! are admitted in that order while the next steps have room for their prefill, so a prompt that
//! is held back holds neither a slot nor blocks.

use super::Scheduler;
use super::sequence::Sequence;
use crate::pacing::{Demand, LATE_PERIOD, Pacer, Prompt, Ranking, Standing};
use crate::protocol::{DecodeView, Micros, PrefillView, RequestFailure, RequestId, Termination};

/// The pacer and what it is shown.
#[derive(Debug)]
pub(super) struct Pacing {
    pub pacer: Pacer,
    /// Steps since a late prompt made progress, while there is one.
    late_waits: u32,
    ranking: Ranking,
    prompts: Vec<Prompt>,
    /// Of the prompts, in their order.
    ids: Vec<RequestId>,
    decoding: Vec<DecodeView>,
}

impl Pacing {
    pub fn new(pacer: Pacer) -> Pacing {
        Pacing {
            pacer,
            late_waits: 0,
            ranking: Ranking::default(),
            prompts: Vec::new(),
            ids: Vec::new(),
            decoding: Vec::new(),
        }
    }

    /// Prefill tokens of the next step.
    pub fn chunk(&mut self, decoding: &[DecodeView], prefilling: &[PrefillView], tokens_max: u32) -> u32 {
        self.pacer.chunk(decoding, prefilling, &self.ranking.paces, tokens_max)
    }

    /// Follows a step that prefills so many tokens of prompts that stand so, so that late prompts
    /// get their turn. What others happen to leave of a chunk is no turn: of a token in every step
    /// a long prompt would starve.
    pub fn count_late(&mut self, served: impl Iterator<Item = (Standing, u32)>) {
        let any_late = self.ranking.order.iter().any(|ranked| ranked.standing == Standing::Late);
        let (mut tokens, mut late_tokens) = (0, 0);
        for (standing, prefilled) in served {
            tokens += prefilled;
            late_tokens += if standing == Standing::Late { prefilled } else { 0 };
        }
        let progress = late_tokens > 0 && late_tokens.saturating_mul(LATE_PERIOD) >= tokens;
        self.late_waits = if any_late && !progress { self.late_waits + 1 } else { 0 };
    }

    fn rank(&mut self, now: Micros, chunk_max: u32) {
        let late_turn = self.late_waits >= LATE_PERIOD;
        let Pacing { pacer, ranking, prompts, decoding, .. } = self;
        pacer.rank(now, prompts, decoding, chunk_max, late_turn, ranking);
    }
}

impl Scheduler {
    /// Admits from the queue in the pacer's order.
    pub(super) fn admit_by_rank(&mut self, now: Micros, pacing: &mut Pacing) {
        let waiting_from = self.show(now, pacing);
        if pacing.prompts.is_empty() {
            pacing.ranking = Ranking::default();
            return;
        }
        let chunk_max = self.prefill_tokens_max(pacing.decoding.len());
        pacing.rank(now, chunk_max);
        self.refuse_late(pacing, waiting_from);
        let limit = self.running_limit(pacing, waiting_from);
        let mut ahead_tokens = 0;
        for position in 0..pacing.ranking.order.len() {
            let ranked = pacing.ranking.order[position];
            let (index, rank) = (ranked.index as usize, (position as u32, ranked.standing));
            let id = pacing.ids[index];
            if index >= waiting_from && (ahead_tokens >= chunk_max || !self.admit_ranked(id, limit)) {
                break;
            }
            ahead_tokens += pacing.prompts[index].remaining_tokens;
            if index >= waiting_from {
                self.set_rank(id, rank);
            }
        }
        // Those that ran already are ranked however far admission went.
        for (position, ranked) in pacing.ranking.order.iter().enumerate() {
            if (ranked.index as usize) < waiting_from {
                self.set_rank(pacing.ids[ranked.index as usize], (position as u32, ranked.standing));
            }
        }
    }

    /// Shows the pacer what runs and waits; returns the index of the first prompt that waits.
    fn show(&self, now: Micros, pacing: &mut Pacing) -> usize {
        let Pacing { prompts, ids, decoding, .. } = pacing;
        decoding.clear();
        decoding
            .extend(self.running.iter().filter(|row| row.decodes()).map(|row| row.decode_view(now, 0, 1)));
        prompts.clear();
        ids.clear();
        let running = self.running.iter().filter(|sequence| !sequence.decodes());
        for sequence in running {
            prompts.push(sequence.prompt());
            ids.push(sequence.request.id);
        }
        let waiting_from = prompts.len();
        for sequence in self.waiting.iter() {
            prompts.push(sequence.prompt());
            ids.push(sequence.request.id);
        }
        waiting_from
    }

    /// Ends what waits, has not started and is late, if the pacer refuses it.
    fn refuse_late(&mut self, pacing: &mut Pacing, waiting_from: usize) {
        let Pacing { pacer, ranking, prompts, ids, .. } = pacing;
        ranking.order.retain(|ranked| {
            let index = ranked.index as usize;
            let waits_late = index >= waiting_from && ranked.standing == Standing::Late;
            !(waits_late && pacer.refuses(&prompts[index]) && self.refuse(ids[index]))
        });
    }

    /// Ends a waiting request that has not started; whether there was one.
    fn refuse(&mut self, id: RequestId) -> bool {
        let unstarted = self.waiting.get(id).filter(|sequence| !sequence.has_started());
        let Some(ttft) = unstarted.and_then(|sequence| sequence.request.slo.ttft) else { return false };
        let refusal = self.end(id, Termination::Failed(RequestFailure::Late { ttft }));
        self.refused.extend(refusal);
        true
    }

    /// Most requests in the running set, by the objectives of those that run and of those that
    /// wait and can be in time.
    fn running_limit(&self, pacing: &mut Pacing, waiting_from: usize) -> u32 {
        let most = self.limits.running_requests_max;
        let demand = |sequence: &Sequence| Demand {
            tpot_us: sequence.request.slo.tpot.map(|tpot| tpot.0),
            weight: sequence.request.weight,
            ttft: sequence.request.slo.ttft.is_some(),
        };
        let running = self.running.iter().map(demand);
        let Pacing { pacer, ranking, .. } = pacing;
        let late = ranking.order.iter().filter(|ranked| ranked.standing == Standing::Late);
        let late = late.filter(|ranked| ranked.index as usize >= waiting_from).count();
        let waiting = self.waiting.iter().map(demand);
        // Late requests are few or many alike; the mix of those in time is what counts.
        let waiting = waiting.take(self.waiting.len() - late);
        pacer.running_limit(running.chain(waiting), most)
    }

    /// Moves a waiting sequence into the running set if it has room, for which a request of a less
    /// urgent class may have to go.
    fn admit_ranked(&mut self, id: RequestId, limit: u32) -> bool {
        let Some(class) = self.waiting.get(id).map(|sequence| sequence.request.class) else { return true };
        if self.running.len() >= limit as usize {
            let displaced = self.running.last().is_some_and(|last| last.request.class > class);
            if !displaced || self.running.len() < 2 {
                return false;
            }
            self.preempt_last();
        }
        self.publish_computed();
        if !self.fits_waiting(id) {
            return false;
        }
        let Some(sequence) = self.waiting.remove(id) else { return false };
        self.start(sequence);
        true
    }

    fn set_rank(&mut self, id: RequestId, rank: (u32, Standing)) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.request.id == id) {
            (sequence.rank, sequence.standing) = rank;
        }
    }
}
