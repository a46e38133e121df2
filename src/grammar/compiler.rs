//! From a description to a constraint.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};

use super::constraint::GrammarConstraint;
use super::{GrammarSource, Vocabulary, place};
use crate::protocol::{TokenConstraint, TokenId};

/// Longest description of an output, in bytes.
pub const GRAMMAR_BYTES_MAX: usize = 128 << 10;

/// Compiled grammars that are kept.
const COMPILED_MAX: usize = 32;

/// Lexer states of one request's grammar, at 1 to 2 KB each; llguidance's own bound would be half a
/// gigabyte.
const LEXER_STATES_MAX: usize = 20_000;

/// Why a description cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is longer than [`GRAMMAR_BYTES_MAX`].
    #[error("may have at most {GRAMMAR_BYTES_MAX} bytes and has {0}")]
    TooLong(usize),
    /// It is wrong, uses what is not supported, or exceeds the parser's limits.
    #[error("{}{problem}", at(place.as_deref()))]
    Invalid {
        /// Where, as a JSON pointer into the schema; `None` if it is not known, or the whole.
        place: Option<String>,
        /// What is wrong, in llguidance's words.
        problem: String,
    },
    /// The model has no tokens that a grammar can be applied to.
    #[error("{0}")]
    Unsupported(String),
}

fn at(place: Option<&str>) -> String {
    place.map(|place| format!("at {place:?}: ")).unwrap_or_default()
}

/// Compiles descriptions for one model.
pub struct GrammarCompiler {
    factory: ParserFactory,
    vocab_size: u32,
    /// The latest grammars, untouched: clients send the same schema again and again.
    compiled: Mutex<VecDeque<(GrammarSource, Matcher)>>,
}

impl GrammarCompiler {
    /// Prepares for a vocabulary.
    ///
    /// # Errors
    /// If it has no end token, or llguidance refuses it.
    pub fn new(vocabulary: Vocabulary) -> Result<GrammarCompiler, GrammarError> {
        if vocabulary.end_tokens.is_empty() {
            let what = "this model has no end token, which a structured output needs";
            return Err(GrammarError::Unsupported(what.to_owned()));
        }
        let vocab_size = vocabulary.bytes.len() as u32;
        let factory = factory(&vocabulary.into_env()).map_err(GrammarError::Unsupported)?;
        Ok(GrammarCompiler { factory, vocab_size, compiled: Mutex::default() })
    }

    /// The constraint of an output that is to be what `source` says, and then one of `stop_tokens`,
    /// which must not be empty.
    ///
    /// # Errors
    /// What is wrong with the source, and where.
    pub fn compile(
        &self,
        source: &GrammarSource,
        stop_tokens: &[TokenId],
    ) -> Result<Arc<dyn TokenConstraint>, GrammarError> {
        let matcher = self.matcher(source)?;
        Ok(Arc::new(GrammarConstraint::new(matcher, stop_tokens, self.vocab_size)))
    }

    fn matcher(&self, source: &GrammarSource) -> Result<Matcher, GrammarError> {
        let length = source.len();
        if length > GRAMMAR_BYTES_MAX {
            return Err(GrammarError::TooLong(length));
        }
        if let Some(known) = self.known(source) {
            return Ok(known);
        }
        let matcher = self.parse(source).map_err(|problem| GrammarError::Invalid {
            place: place::of_problem(source, &problem, |part| self.parse(part).err()),
            problem,
        })?;
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.truncate(COMPILED_MAX - 1);
        compiled.push_front((source.clone(), matcher.deep_clone()));
        Ok(matcher)
    }

    fn known(&self, source: &GrammarSource) -> Option<Matcher> {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, matcher) = compiled.iter().find(|(known, _)| known == source)?;
        // of its own: the limits of one request must not depend on what others did
        Some(matcher.deep_clone())
    }

    fn parse(&self, source: &GrammarSource) -> Result<Matcher, String> {
        let parser = self.factory.create_parser(source.to_llguidance());
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(brief(&error)),
            None => Ok(matcher),
        }
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarCompiler({} tokens)", self.vocab_size)
    }
}

fn factory(env: &TokEnv) -> Result<ParserFactory, String> {
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(env, InferenceCapabilities::default(), &slices)
        .map_err(|error| brief(&error.to_string()))?;
    let limits = factory.limits_mut();
    limits.max_lexer_states = LEXER_STATES_MAX;
    limits.verbose_errors = false;
    factory.quiet();
    Ok(factory)
}

/// A message without what llguidance appends for its own debugging.
fn brief(error: &str) -> String {
    let end =
        ["\n<state>", "\n<non-verbose/>", "\n<backtrace>"].iter().filter_map(|mark| error.find(mark)).min();
    error[..end.unwrap_or(error.len())].trim().to_owned()
}
