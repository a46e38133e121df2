//! Prompts that end inside their last message, for the model to continue it.

use std::borrow::Cow;

use serde_json::Value as Json;

/// Marks the end of the message in the rendered text. The space at its end tells whether the
/// template trims messages.
const MARK: &str = "\u{f8ff}the message goes on here\u{f8ff} ";

/// The messages with a mark at the end of the last one.
pub(super) fn marked(messages: &[Json]) -> Cow<'_, [Json]> {
    let mut messages = messages.to_vec();
    if let Some(Json::String(content)) = messages.last_mut().and_then(|last| last.get_mut("content")) {
        content.push_str(MARK);
    }
    Cow::Owned(messages)
}

/// The text before the mark; `None` if the template leaves the message out. A template that trims
/// messages trims the space at the end of this one, too.
pub(super) fn cut(rendered: &str) -> Option<&str> {
    let (before, after) = rendered.rsplit_once(MARK.trim_end())?;
    Some(if after.starts_with(' ') { before } else { before.trim_end() })
}
