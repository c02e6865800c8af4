from infinity_mm.engines.lru import BytesLru


def test_the_value_used_longest_ago_leaves_first() -> None:
    cache: BytesLru[str, int] = BytesLru(10)
    cache.put("a", 1, num_bytes=4)
    cache.put("b", 2, num_bytes=4)
    assert cache.get("a") == 1
    cache.put("c", 3, num_bytes=4)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_a_new_value_of_a_key_takes_the_place_and_the_size_of_the_old_one() -> None:
    cache: BytesLru[str, int] = BytesLru(10)
    for value in range(5):
        cache.put("a", value, num_bytes=10)
    assert (cache.get("a"), len(cache)) == (4, 1)
    cache.put("a", 5, num_bytes=2)
    cache.put("b", 6, num_bytes=8)
    assert [cache.get(key) for key in "ab"] == [5, 6]


def test_a_value_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    cache: BytesLru[str, int] = BytesLru(10)
    cache.put("a", 1, num_bytes=4)
    cache.put("b", 2, num_bytes=11)
    assert [cache.get(key) for key in "ab"] == [1, None]
