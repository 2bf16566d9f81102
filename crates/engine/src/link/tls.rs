//! TLS 1.3 with raw public keys, each pinned to one partner.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct,
    DistinguishedName, Error, PeerMisbehaved, ServerConfig, ServerConnection, SignatureScheme,
};

use crate::identity::{Public, Secret};

use super::LinkError;

/// What stands before an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
/// What stands before an Ed25519 seed in its PKCS#8 form (RFC 8410, section 7).
const PKCS8: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Both roles' configuration, made once.
#[derive(Debug)]
pub(super) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    pub(super) fn new(secret: &Secret, partner: &Public) -> Result<Tls, Error> {
        Tls::with(identity(secret, secret.public())?, partner)
    }

    fn with(identity: CertifiedKey, partner: &Public) -> Result<Tls, Error> {
        let provider = Arc::new(CryptoProvider {
            // Fastest first: every processor with KVM has instructions for AES.
            cipher_suites: vec![
                TLS13_AES_128_GCM_SHA256,
                TLS13_AES_256_GCM_SHA384,
                TLS13_CHACHA20_POLY1305_SHA256,
            ],
            ..ring::default_provider()
        });
        let pin = Arc::new(Pin {
            partner: spki(partner),
            provider: Arc::clone(&provider),
        });
        let identity = Arc::new(identity);

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&pin) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                Arc::clone(&identity),
            )));
        client.resumption = Resumption::disabled();
        // There is no name: a partner is its key.
        client.enable_sni = false;

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(pin)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity)));
        server.send_tls13_tickets = 0;

        Ok(Tls {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    pub(super) fn client(&self) -> Result<rustls::Connection, Error> {
        let name = ServerName::try_from("partner").expect("a valid name, never sent");
        ClientConnection::new(Arc::clone(&self.client), name).map(Into::into)
    }

    pub(super) fn server(&self) -> Result<rustls::Connection, Error> {
        ServerConnection::new(Arc::clone(&self.server)).map(Into::into)
    }
}

fn spki(public: &Public) -> Vec<u8> {
    [&SPKI[..], public.link()].concat()
}

/// The key of `secret`, presented as `public`.
fn identity(secret: &Secret, public: &Public) -> Result<CertifiedKey, Error> {
    let key = PrivatePkcs8KeyDer::from([&PKCS8[..], secret.link()].concat());
    let key = ring::sign::any_eddsa_type(&key)?;
    let public = CertificateDer::from(spki(public));
    Ok(CertifiedKey::new(vec![public], key))
}

/// What a failure of the TLS library means to the operator.
pub(super) fn explain(error: Error) -> LinkError {
    match error {
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            LinkError::WrongKey
        }
        // What `ApplicationVerificationFailure` looks like from the other side.
        Error::AlertReceived(AlertDescription::AccessDenied) => LinkError::Refused,
        Error::InvalidMessage(_) => LinkError::Mixed,
        error => LinkError::Tls(error),
    }
}

/// Takes one partner and nobody else.
#[derive(Debug)]
struct Pin {
    partner: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl Pin {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        if key.as_ref() == self.partner {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// TLS 1.2 is neither offered nor taken.
fn too_old() -> Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pin {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
