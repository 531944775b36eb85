//! The values of libvirt's typed parameters.
//!
//! libvirt-dbus wraps each of them **twice**: a variant in the variant that `a{sv}` has anyway. Both
//! forms are read here, and any integer width, as that differs between libvirt's versions.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

/// Typed parameters as they come from the bus.
pub(crate) type Params = HashMap<String, OwnedVariant>;

/// A number that is not negative.
pub(crate) fn number(params: &Params, key: &str) -> Option<u64> {
    match bare(params.get(key)?) {
        Variant::U8(value) => Some((*value).into()),
        Variant::U16(value) => Some((*value).into()),
        Variant::U32(value) => Some((*value).into()),
        Variant::U64(value) => Some(*value),
        Variant::I16(value) => u64::try_from(*value).ok(),
        Variant::I32(value) => u64::try_from(*value).ok(),
        Variant::I64(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

/// Takes the wrapping off, however deep (the bus allows no more than 64 levels).
fn bare<'a>(mut value: &'a Variant<'a>) -> &'a Variant<'a> {
    while let Variant::Variant(inner) = value {
        value = inner;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(value: Variant<'static>) -> Params {
        HashMap::from([("key".to_owned(), OwnedVariant::try_from(value).unwrap())])
    }

    #[test]
    fn values_are_found_wrapped_once_or_twice() {
        let once = params(Variant::U64(7));
        let twice = params(Variant::Variant(Box::new(Variant::U64(7))));
        assert_eq!((number(&once, "key"), number(&twice, "key")), (Some(7), Some(7)));
        assert_eq!(number(&params(Variant::I32(-1)), "key"), None);
        assert_eq!(number(&params(Variant::I32(5)), "key"), Some(5));
        assert_eq!(number(&once, "other"), None);
        assert_eq!(number(&params(Variant::Str("7".into())), "key"), None);
    }
}
