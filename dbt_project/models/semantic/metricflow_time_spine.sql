-- Names of days do not depend on a time zone; the last one is reckoned in UTC.
select day::date as date_day
from generate_series(
    timestamp '2015-01-01',
    date_trunc('year', now() at time zone 'UTC') + interval '2 years' - interval '1 day',
    interval '1 day'
) as spine (day)
