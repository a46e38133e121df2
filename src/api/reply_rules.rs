//! How the answer to a conversation is to be read.

use super::chat::Conversation;
use super::chat_features::ChatFeatures;
use super::error::ApiError;
use super::fields::Fields;
use super::reply::{CallRules, ReasoningRules, ReplyRules, Shown, Start};

/// Takes `include_reasoning` and `separate_reasoning`, and decides how the answer is read;
/// `is_described`: whether the request says what the output must look like.
///
/// # Errors
/// 400 for another type.
pub fn parse(
    fields: &mut Fields,
    conversation: &Conversation,
    features: &ChatFeatures,
    is_described: bool,
) -> Result<ReplyRules, ApiError> {
    let included = fields.boolean("include_reasoning")?.unwrap_or(true);
    let separate = fields.boolean("separate_reasoning")?.unwrap_or(true);
    let shown = match (included, separate) {
        (false, _) => Shown::Nowhere,
        (true, true) => Shown::Apart,
        (true, false) => Shown::InText,
    };
    let reasoning = features.reasoning_format.map(|format| {
        let last = conversation.messages.last().filter(|_| conversation.continue_final_message);
        let start = last.map_or(Start::Open, |message| Start::within(&message.content, format));
        ReasoningRules { format, start, shown }
    });
    let tools = &conversation.tools;
    let forced = tools.are_forced();
    let calls = features.tool_format.filter(|_| !tools.list.is_empty()).map(|format| CallRules {
        format,
        names: tools.names().map(str::to_owned).collect(),
        parallel: tools.parallel,
        forced,
    });
    // what a description leads to is all of the output
    Ok(ReplyRules {
        reasoning: reasoning.filter(|_| !is_described),
        calls: calls.filter(|_| !is_described || forced),
    })
}
