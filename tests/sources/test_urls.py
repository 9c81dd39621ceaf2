from __future__ import annotations

import pytest

from trt_vit.errors import UsageError
from trt_vit.sources.urls import is_url, path_of, public_url, refuse_chained, without_secrets


@pytest.mark.parametrize("text", ["s3://bucket/a.jpg", "https://host", "memory://", "abfs+x.y-1://c@a/b"])
def test_urls(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["a.jpg", "/a://b", "./s3://b", "s3:/b", "1s3://b", "://b", "", "-"])
def test_paths(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("s3://bucket/a b@c.jpg", "s3://bucket/a b@c.jpg"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
        ("s3://bucket/a#b.jpg", "s3://bucket/a#b.jpg"),
        ("s3://key:secret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("ftp://user:p@ss@host:21/a.jpg", "ftp://host:21/a.jpg"),
        ("https://token@host/a.jpg", "https://host/a.jpg"),
        ("abfs://container@account.dfs/a.jpg", "abfs://container@account.dfs/a.jpg"),
        ("abfss://container:key@account.dfs/a.jpg", "abfss://container@account.dfs/a.jpg"),
        ("https://host/a.jpg?id=5&size=large", "https://host/a.jpg?id=5&size=large"),
        ("https://host/a.jpg?id=5&access_token=abc&n=1#access_token=abc", "https://host/a.jpg?id=5&n=1"),
        ("https://host/a.jpg?design=3&KEY=1&Api-Key=2&monkey=4", "https://host/a.jpg?design=3&monkey=4"),
        ("https://host?token=1", "https://host"),
        (
            "https://b.s3/a.jpg?X-Amz-Credential=AK%2F2026&versionId=7&X-Amz-Security-Token=t&X-Amz-Expires=1&X-Amz-Signature=0",
            "https://b.s3/a.jpg?versionId=7",
        ),
        (
            "https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=AK&Signature=s&Expires=1",
            "https://b.s3.amazonaws.com/a.jpg",
        ),
        ("https://storage/a.jpg?GoogleAccessId=g&Expires=1&Signature=s", "https://storage/a.jpg"),
        ("https://storage/a.jpg?X-Goog-Signature=s&X-Goog-Date=1", "https://storage/a.jpg"),
        ("https://cdn/a.jpg?Policy=p&Signature=s&Key-Pair-Id=K", "https://cdn/a.jpg"),
        ("https://acc.blob/a.jpg?sv=2024&sr=b&sig=s&se=2026&sp=r", "https://acc.blob/a.jpg"),
        ("https://host/a.jpg?sv=2024&sr=b", "https://host/a.jpg?sv=2024&sr=b"),
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str, public: str) -> None:
    assert public_url(url) == public
    assert public_url(public) == public
    assert (
        without_secrets(f"message, url='{url.replace(' ', '%20')}'") == f"message, url='{public.replace(' ', '%20')}'"
    )


def test_the_path_of_a_url_is_what_ends_in_its_suffix() -> None:
    assert path_of("https://host/a.tar?x=/b.jpg#c") == "https://host/a.tar"
    assert path_of("s3://bucket/a?b.tar") == "s3://bucket/a?b.tar"
    assert path_of("a?b.tar") == "a?b.tar"


def test_a_chained_url_is_refused_without_its_secrets() -> None:
    with pytest.raises(UsageError, match=r"cannot open 'zip://a.jpg::s3://bucket/b.zip': it holds ::"):
        refuse_chained("zip://a.jpg::s3://bucket/b.zip")
    with pytest.raises(UsageError) as caught:
        refuse_chained("https://user:word@host/a::b")
    assert "word" not in str(caught.value)
