//! Reading libvirt's XML: bounded in size, no document type, no guessing.

use roxmltree::{Document, Node, ParsingOptions};

use super::error::{Error, Result};

/// The largest XML that is looked at. A guest with hundreds of disks has less than a mebibyte.
const LARGEST: usize = 8 << 20;
/// The most elements, attributes not counted.
const NODES: u32 = 200_000;

/// Parses XML whose root must be of that name.
pub(super) fn parse<'a>(kind: &'static str, text: &'a str) -> Result<Document<'a>> {
    let bad = |what: String| Error::BadXml { kind, what };
    if text.len() > LARGEST {
        return Err(bad(format!("{} bytes are too many", text.len())));
    }
    let options = ParsingOptions { nodes_limit: NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| bad(e.to_string()))?;
    let root = document.root_element().tag_name().name();
    let expected = if kind == "storage pool" { "pool" } else { kind };
    if root != expected {
        return Err(bad(format!("it is a <{root}>")));
    }
    Ok(document)
}

/// The first child element of that name.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// All child elements of that name.
pub(super) fn children<'a, 'i: 'a>(
    node: Node<'a, 'i>,
    name: &'a str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

/// The text of a child element, without the white space around it; `None` when it is empty.
pub(super) fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    let text = child(node, name)?.text()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// An attribute.
pub(super) fn attribute(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.attribute(name).map(str::to_owned)
}

/// An attribute of a child element.
pub(super) fn child_attribute(node: Node<'_, '_>, name: &str, key: &str) -> Option<String> {
    attribute(child(node, name)?, key)
}
