//! A compiled grammar as a constraint on tokens.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;

use crate::protocol::{ConstraintState, TokenConstraint, TokenId, TokenMask};

/// Outputs whose state is kept: as many as one request may have at once.
const OUTPUTS_MAX: usize = 16;

/// What an output must be, and then one of the stop tokens.
pub(super) struct GrammarConstraint {
    start: GrammarState,
    /// The latest outputs with their states, the latest first. Outputs grow by a few tokens from step
    /// to step, so that little has to be read again.
    outputs: Mutex<Vec<(Vec<TokenId>, GrammarState)>>,
}

impl GrammarConstraint {
    pub fn new(matcher: Matcher, stop_tokens: &[TokenId], vocab_size: u32) -> GrammarConstraint {
        let stops = TokenMask::from_fn(vocab_size, |token| stop_tokens.contains(&token));
        let start = GrammarState { matcher, stops: Arc::new(stops), ended: false, mask: None };
        GrammarConstraint { start, outputs: Mutex::default() }
    }

    /// The state behind an output, read from its beginning.
    fn replayed(&self, output: &[TokenId]) -> GrammarState {
        let mut state = GrammarState { matcher: self.start.matcher.deep_clone(), ..self.start.clone() };
        output.iter().for_each(|&token| state.advance(token));
        state
    }
}

impl TokenConstraint for GrammarConstraint {
    fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState> {
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = (0..outputs.len())
            .filter(|&index| output.starts_with(&outputs[index].0))
            .max_by_key(|&index| outputs[index].0.len());
        let (mut known, mut state) = match longest {
            Some(index) => outputs.remove(index),
            None => (Vec::new(), self.replayed(&[])),
        };
        output[known.len()..].iter().for_each(|&token| state.advance(token));
        state.mask();
        // a parser at its limits may have come there by drafts that were rejected
        if state.matcher.is_error() {
            state = self.replayed(output);
            state.mask();
        }
        known.extend_from_slice(&output[known.len()..]);
        let here = state.fork();
        outputs.truncate(OUTPUTS_MAX - 1);
        outputs.insert(0, (known, state));
        here
    }
}

impl std::fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrammarConstraint")
    }
}

/// Where an output stands in its grammar.
#[derive(Clone)]
struct GrammarState {
    matcher: Matcher,
    /// The stop tokens alone.
    stops: Arc<TokenMask>,
    /// Whether a stop token came.
    ended: bool,
    /// What may come next; `None` until it was asked for.
    mask: Option<Arc<TokenMask>>,
}

impl GrammarState {
    fn computed(&mut self) -> Arc<TokenMask> {
        if self.ended {
            return self.stops.clone();
        }
        let vocab_size = self.stops.vocab_size();
        let Ok(allowed) = self.matcher.compute_mask_or_eos() else {
            return Arc::new(TokenMask::none(vocab_size));
        };
        let mask = TokenMask::from_words(vocab_size, allowed.as_slice());
        // the parser knows the model's end tokens alone
        let complete = self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false);
        Arc::new(if complete { mask.or(&self.stops) } else { mask })
    }
}

impl ConstraintState for GrammarState {
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        let mask = self.mask.take().unwrap_or_else(|| self.computed());
        self.mask = Some(mask.clone());
        Some(mask)
    }

    fn advance(&mut self, token: TokenId) {
        if self.ended {
            return;
        }
        self.mask = None;
        self.ended = self.stops.allows(token);
        if !self.ended {
            // a failure stays in the matcher, which then allows nothing
            let _ = self.matcher.consume_token(token);
        }
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }

    fn forced(&mut self) -> Vec<TokenId> {
        if self.ended { Vec::new() } else { self.matcher.compute_ff_tokens() }
    }
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarState(ended: {})", self.ended)
    }
}
