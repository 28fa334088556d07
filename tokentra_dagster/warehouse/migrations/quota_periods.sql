-- Periods of quotas (correction 27): UTC, half-open [start, end), 0 is Sunday, day 31 is the last day of a shorter month.

CREATE FUNCTION app.refuse_period_type(period_type TEXT) RETURNS TIMESTAMP
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$$
BEGIN
  RAISE EXCEPTION 'period type % is unknown: use hourly, daily, weekly or monthly', COALESCE(quote_literal(period_type), 'NULL')
    USING ERRCODE = 'invalid_parameter_value';
END
$$;

-- `month` is the first of a month at 00:00.
CREATE FUNCTION app.day_of_month(month TIMESTAMP, day INTEGER) RETURNS TIMESTAMP
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT month + make_interval(days => least(day, extract(day FROM month + interval '1 month' - interval '1 day')::INTEGER) - 1) $$;

-- The start of the period that holds `moment`. Weeks are shifted so that they begin on a Monday, where date_trunc cuts them.
CREATE FUNCTION app.quota_period_start(period_type TEXT, reset_day INTEGER, reset_hour INTEGER, moment TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT CASE period_type
    WHEN 'hourly' THEN date_trunc('hour', moment AT TIME ZONE 'UTC')
    WHEN 'daily' THEN
      date_trunc('day', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)) + make_interval(hours => reset_hour)
    WHEN 'weekly' THEN
      date_trunc('week', moment AT TIME ZONE 'UTC' - make_interval(days => reset_day - 1, hours => reset_hour))
      + make_interval(days => reset_day - 1, hours => reset_hour)
    WHEN 'monthly' THEN make_interval(hours => reset_hour) + CASE
      WHEN moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)
        >= app.day_of_month(date_trunc('month', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)), reset_day)
      THEN app.day_of_month(date_trunc('month', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)), reset_day)
      ELSE app.day_of_month(
        date_trunc('month', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)) - interval '1 month', reset_day
      )
    END
    ELSE app.refuse_period_type(period_type)
  END AT TIME ZONE 'UTC'
$$;

-- The end of the period that holds `moment`: the next period's start.
CREATE FUNCTION app.quota_period_end(period_type TEXT, reset_day INTEGER, reset_hour INTEGER, moment TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT CASE period_type
    WHEN 'monthly' THEN (
      make_interval(hours => reset_hour) + CASE
        WHEN moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)
          >= app.day_of_month(date_trunc('month', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)), reset_day)
        THEN app.day_of_month(
          date_trunc('month', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)) + interval '1 month', reset_day
        )
        ELSE app.day_of_month(date_trunc('month', moment AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)), reset_day)
      END
    ) AT TIME ZONE 'UTC'
    ELSE (
      app.quota_period_start(period_type, reset_day, reset_hour, moment) AT TIME ZONE 'UTC'
      + CASE period_type WHEN 'hourly' THEN interval '1 hour' WHEN 'daily' THEN interval '1 day' ELSE interval '7 days' END
    ) AT TIME ZONE 'UTC'
  END
$$;

-- Every period that begins at or after the one that holds `first_moment` and before `until`, in order.
CREATE FUNCTION app.quota_periods(
  period_type TEXT, reset_day INTEGER, reset_hour INTEGER, first_moment TIMESTAMPTZ, until TIMESTAMPTZ
) RETURNS TABLE (period_start TIMESTAMPTZ, period_end TIMESTAMPTZ)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT begun.period_start, app.quota_period_end(period_type, reset_day, reset_hour, begun.period_start)
  FROM (
    SELECT CASE period_type
      WHEN 'monthly' THEN (app.day_of_month(step.moment, reset_day) + make_interval(hours => reset_hour)) AT TIME ZONE 'UTC'
      ELSE step.moment AT TIME ZONE 'UTC'
    END AS period_start
    FROM generate_series(
      CASE period_type
        WHEN 'monthly' THEN date_trunc(
          'month',
          app.quota_period_start(period_type, reset_day, reset_hour, first_moment) AT TIME ZONE 'UTC' - make_interval(hours => reset_hour)
        )
        ELSE app.quota_period_start(period_type, reset_day, reset_hour, first_moment) AT TIME ZONE 'UTC'
      END,
      until AT TIME ZONE 'UTC',
      CASE period_type
        WHEN 'hourly' THEN interval '1 hour'
        WHEN 'daily' THEN interval '1 day'
        WHEN 'weekly' THEN interval '7 days'
        ELSE interval '1 month'
      END
    ) AS step (moment)
  ) AS begun
  WHERE begun.period_start < until
  ORDER BY begun.period_start
$$;
