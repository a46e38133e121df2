//! SentencePiece's mark for a space.

use tokenizers::DecoderWrapper;

const MARK: char = '▁';

/// Whether the tokens write spaces with the mark, and the decoder does nothing to a token in the middle
/// of a text but to turn the mark back and to join bytes.
pub(super) fn are_marked(tokenizer: &tokenizers::Tokenizer) -> bool {
    tokenizer.get_decoder().is_some_and(turns_back)
}

fn turns_back(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::Metaspace(metaspace) => metaspace.get_replacement() == MARK,
        DecoderWrapper::Replace(replace) => replaces_mark(replace),
        DecoderWrapper::Sequence(sequence) => {
            let keeps = |one: &DecoderWrapper| {
                matches!(
                    one,
                    DecoderWrapper::ByteFallback(_) | DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_)
                )
            };
            let steps = sequence.get_decoders();
            steps.iter().any(turns_back) && steps.iter().all(|one| keeps(one) || turns_back(one))
        }
        _ => false,
    }
}

/// A replacement keeps its fields to itself, but not its form as JSON.
fn replaces_mark(replace: &impl serde::Serialize) -> bool {
    let form = serde_json::to_value(replace).unwrap_or_default();
    form["pattern"]["String"] == MARK.to_string() && form["content"] == " "
}

/// The bytes of a token in the middle of a text.
pub(super) fn unmarked(token: &str) -> Vec<u8> {
    token.replace(MARK, " ").into_bytes()
}
