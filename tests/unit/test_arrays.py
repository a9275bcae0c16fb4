"""Arrays as Postgres reads them."""

from server.postgres.arrays import texts, words


def test_words() -> None:
    assert words([]) == "{}"
    assert words(["running", None, 3, 0.25, float("inf")]) == "{running,NULL,3,0.25,inf}"


def test_texts() -> None:
    assert texts([]) == "{}"
    assert texts(["", None, "NULL", 'a"b', "\\", "{,}", " é\n"]) == '{"",NULL,"NULL","a\\"b","\\\\","{,}"," é\n"}'
