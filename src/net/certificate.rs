//! What a certificate says, once its signature has been checked.

use std::time::Duration;

use conclave_proto::ServerId;
use x509_cert::Certificate as Parsed;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The attributes that have a name in RFC 2253; all others are written as numbers.
const NAMES: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The distinguished name of its subject, as RFC 2253 writes it and Java's `X500Principal` does:
    /// `CN=alice,OU=ops,O=Example`. Empty if it has none.
    pub subject: String,
    /// From when on it is valid, since 1970.
    pub not_before: Duration,
    /// Until when it is valid, since 1970.
    pub not_after: Duration,
    /// The URIs among its alternative names.
    uris: Vec<String>,
}

/// The URI that the certificate of a member must have among its alternative names:
/// `conclave://CLUSTER/ID`.
pub fn member_name(cluster: &str, id: ServerId) -> String {
    format!("conclave://{cluster}/{id}")
}

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// What about it cannot be understood.
    pub fn read(der: &[u8]) -> Result<Certificate, String> {
        let parsed = Parsed::from_der(der).map_err(|error| error.to_string())?;
        let body = parsed.tbs_certificate();
        let names = body.get_extension::<SubjectAltName>().map_err(|error| error.to_string())?;
        let names = names.map_or_else(Vec::new, |(_, names)| names.0);
        let uris = names.into_iter().filter_map(uri).collect();
        let rdns: Vec<String> = body
            .subject()
            .iter_rdn()
            .map(|rdn| rdn.iter().map(attribute).collect::<Vec<_>>().join("+"))
            .collect();
        Ok(Certificate {
            // RFC 2253 begins with the last one.
            subject: rdns.into_iter().rev().collect::<Vec<_>>().join(","),
            not_before: body.validity().not_before.to_unix_duration(),
            not_after: body.validity().not_after.to_unix_duration(),
            uris,
        })
    }

    /// Whether it is that member's: exactly this name is among its alternative names. One without
    /// such names is nobody's.
    pub fn is_of(&self, cluster: &str, id: ServerId) -> bool {
        self.uris.contains(&member_name(cluster, id))
    }

    /// Its alternative names that are URIs, for messages.
    pub(super) fn uris(&self) -> String {
        if self.uris.is_empty() { "no URI".into() } else { self.uris.join(", ") }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds of name are of no use here")]
fn uri(name: GeneralName) -> Option<String> {
    match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
        _ => None,
    }
}

/// `CN=alice`.
fn attribute(attribute: &AttributeTypeAndValue) -> String {
    let kind = attribute.oid.to_string();
    let name = NAMES.iter().find(|(oid, _)| *oid == kind).map(|(_, name)| *name);
    let is_text = matches!(
        attribute.value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString
    );
    match (name, std::str::from_utf8(attribute.value.value())) {
        (Some(name), Ok(text)) if is_text => format!("{name}={}", escape(text)),
        _ => {
            let der = attribute.value.to_der().unwrap_or_default();
            let hex: String = der.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}=#{hex}", name.unwrap_or(&kind))
        }
    }
}

/// A backslash goes before what has a meaning in a name, and before spaces at either end.
fn escape(text: &str) -> String {
    let spaces = |text: &str| text.len() - text.trim_start_matches(' ').len();
    let first = spaces(text);
    let last = text.len() - spaces(&text.chars().rev().collect::<String>());
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        match c {
            ',' | '=' | '+' | '<' | '>' | '#' | ';' | '"' | '\\' => out.extend(['\\', c]),
            ' ' if at < first || at >= last => out.push_str("\\ "),
            '\0' => out.push_str("\\00"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Certificate::read(made.der()).unwrap()
    }

    fn subject(parts: &[(DnType, &str)]) -> String {
        made(|params| {
            for (kind, value) in parts {
                params.distinguished_name.push(kind.clone(), *value);
            }
        })
        .subject
    }

    #[test]
    fn subjects_are_written_as_java_writes_them() {
        let (country, name) = (DnType::CountryName, DnType::CommonName);
        let unit = DnType::OrganizationalUnitName;
        assert_eq!(subject(&[(country, "DE"), (unit, "ops"), (name, "a b")]), "CN=a b,OU=ops,C=DE");
        let name = |text| subject(&[(DnType::CommonName, text)]);
        assert_eq!(name(" lead and trail "), "CN=\\ lead and trail\\ ");
        assert_eq!(name("   "), "CN=\\ \\ \\ ");
        let special = "#hash;semi<lt>\"q\"\\back=eq,+";
        assert_eq!(name(special), "CN=\\#hash\\;semi\\<lt\\>\\\"q\\\"\\\\back\\=eq\\,\\+");
        assert_eq!(name("Jürgen"), "CN=Jürgen");
        let title = DnType::CustomDnType(vec![2, 5, 4, 12]);
        assert_eq!(subject(&[(title, "Dr")]), "2.5.4.12=#0c024472");
        assert_eq!(subject(&[]), "");
    }

    #[test]
    fn a_member_is_named_exactly() {
        let with = |uris: &[&str]| {
            made(|params| {
                let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
                params.subject_alt_names.extend(uris);
            })
        };
        let one = ServerId::new(1).unwrap();
        assert!(with(&["conclave://orders/1"]).is_of("orders", one));
        assert!(with(&["https://x", "conclave://orders/1"]).is_of("orders", one));
        for uris in [
            &[][..],
            &["conclave://orders/11"],
            &["conclave://orders/"],
            &["conclave://orders"],
            &["conclave://orders/2"],
            &["conclave://others/1"],
            &["CONCLAVE://orders/1"],
            &["conclave://orders/1/"],
            &["conclave://orders/01"],
        ] {
            assert!(!with(uris).is_of("orders", one), "{uris:?}");
        }
        // A name that is no URI does not count.
        let named = made(|params| {
            let name = "conclave://orders/1".try_into().unwrap();
            params.subject_alt_names.push(SanType::DnsName(name));
        });
        assert!(!named.is_of("orders", one));
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        assert!(Certificate::read(b"").is_err());
        assert!(Certificate::read(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
