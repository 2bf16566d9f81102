//! One connection to one node: HTTP/1.1, with or without TLS.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::Endpoint;

/// etcd's longest value is 1.5 MiB, and base64 adds a third.
const ANSWER_MAX: usize = 4 << 20;

/// A connection, ready for a request.
#[derive(Debug)]
pub(super) struct Line {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
}

impl Line {
    /// Connects.
    pub(super) async fn open(
        endpoint: &Endpoint,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Line, String> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|error| error.to_string())?;
        // Requests are small, and each is waited for.
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let sender = match tls {
            Some(config) if endpoint.tls => {
                let name = ServerName::try_from(endpoint.host.clone())
                    .map_err(|_| "its name cannot stand in a certificate".to_owned())?;
                let stream = TlsConnector::from(Arc::clone(config))
                    .connect(name, stream)
                    .await
                    .map_err(|error| format!("TLS: {error}"))?;
                over(TokioIo::new(stream)).await?
            }
            None if endpoint.tls => return Err("there is no CA's certificate".to_owned()),
            _ => over(TokioIo::new(stream)).await?,
        };
        let host = HeaderValue::try_from(endpoint.authority())
            .map_err(|_| "its name cannot stand in a header".to_owned())?;
        Ok(Line { sender, host })
    }

    /// Whether the other end has not closed it, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        self.sender.is_ready()
    }

    /// Asks, and waits for the answer. A line on which this failed, or was given up, is of no use
    /// any more.
    pub(super) async fn post(
        &mut self,
        path: &str,
        body: String,
        token: Option<&HeaderValue>,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::post(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        self.sender.ready().await.map_err(|e| chain(&e))?;
        let answer = self.sender.send_request(request).await;
        let (head, body) = answer.map_err(|e| chain(&e))?.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok((head.status, body))
    }
}

async fn over<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: Read + Write + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(stream).await.map_err(|e| chain(&e))?;
    // It ends with the sender; what breaks it, the sender is told.
    tokio::spawn(connection);
    Ok(sender)
}

/// The error with its cause, which says more: a refused certificate, for one.
fn chain(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
